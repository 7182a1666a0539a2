"""The page of lineage in a browser: search, click through, compare, keyboard; nothing fetched, nothing complained of."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from lineage_runs import at_place, make_run, make_step, row_entry
from page_scripts import with_script

from paligemma.artifacts.recording import attempt
from paligemma.errors import InputError
from paligemma.lineage.cache_hits import record_cached
from paligemma.lineage.index import Index
from paligemma.lineage.page import page_data, render_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RUNS = 200
BAD = ("bad.png", "</script> 'wrong'")

SCRIPT = """
<script>
(async () => {
const seen = { errors: [] };
addEventListener("error", event => seen.errors.push(event.message));
const was = console.error; console.error = (...words) => { seen.errors.push(words.join(" ")); was(...words); };
const put = (id, value) => { at(id).value = value; at(id).dispatchEvent(new Event("input")); };
const rest = () => new Promise(done => setTimeout(done, 30));
const texts = query => [...document.querySelectorAll(query)].map(one => one.textContent);
const press = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const results = () => texts("#main tbody tr");
seen.runs = texts("#runs button").length;
seen.title = texts("#main h2")[0];
go("run-0001"); await rest();
const second = node => node.querySelector("title").textContent.split("\\n")[1];
seen.nodes = [...document.querySelectorAll(".node")].map(node =>
  [node.dataset.node.slice(0, 4), node.getAttribute("class"), second(node)]);
seen.edges = [...document.querySelectorAll(".edge")].map(edge => [edge.dataset.from.slice(0, 4), edge.dataset.to]);
seen.leftToRight = [...document.querySelectorAll(".edge")].every(edge => {
  const [, from, to] = edge.getAttribute("d").match(/M([\\d.]+) .* ([\\d.]+) [\\d.]+$/);
  return Number(from) < Number(to);
});
document.querySelector("[data-node=finetune]").dispatchEvent(new MouseEvent("click", { bubbles: true })); await rest();
seen.detail = at("detail").textContent;
seen.links = texts("#detail .link");
[...document.querySelectorAll("#detail .link")].find(one => one.textContent === "train").click(); await rest();
seen.clicked = at("detail").querySelector("h2").textContent;
seen.usedBy = texts("#detail .link");
history.back(); await rest(); await rest();
seen.back = at("detail").querySelector("h2").textContent;
const node = document.querySelector("[data-node=train]");
node.focus(); press(node, "Enter"); await rest();
seen.entered = at("detail").querySelector("h2").textContent;
document.querySelector("[data-node=train]").focus(); press(document.activeElement, "ArrowRight");
seen.arrow = document.activeElement.dataset.node;
press(document.activeElement, "ArrowLeft");
seen.arrowBack = document.activeElement.dataset.node;
press(document.body, "/");
seen.slash = document.activeElement.id;
put("find", ROW); seen.byRow = results();
put("find", ROW.slice(0, 10)); seen.byShortRow = results().length;
put("find", "bad.png"); seen.byImage = results().length;
put("find", "steps = 7"); seen.byParameter = results();
put("find", TREE.slice(0, 12)); seen.byHash = results();
put("find", "zzzz"); seen.byNothing = texts("#main h2")[0];
put("find", ROW); document.querySelector("#main .link").click(); await rest();
seen.found = [at("find").value, at("detail").querySelector("h2").textContent];
put("status", "failed"); seen.failed = texts("#runs button").map(text => text.slice(0, 8));
document.querySelector("#runs button").click(); await rest();
seen.error = at("main").textContent.includes("The loss is not finite.");
put("status", ""); put("before", "run-0001"); put("after", "run-0002"); at("compare").click(); await rest();
seen.compared = [...document.querySelectorAll("#main tbody tr")].map(row =>
  [...row.children].map(cell => cell.textContent.slice(0, 40)));
seen.paragraphs = texts("#main p");
seen.chosen = [at("before").value, at("after").value];
go("run-0009"); await rest();
seen.offered = [at("before").value, at("after").value];
go("run-reuse"); await rest();
seen.cached = [...document.querySelectorAll(".node.cached")].map(second);
seen.wide = document.documentElement.scrollWidth <= innerWidth;
seen.unnamed = [...document.querySelectorAll("button, input, select, [role=button]")].filter(one =>
  !(one.textContent.trim() || one.getAttribute("aria-label") || one.labels?.length)).length;
seen.fetched = performance.getEntriesByType("resource").map(entry => entry.name);
document.body.innerHTML = "<pre id=seen></pre>";
document.getElementById("seen").textContent = JSON.stringify(seen);
})();
</script>
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lineage")
    (folder / "rows.jsonl").write_text("rows\n")
    for number in range(RUNS - 2):
        rows = [(f"{number}.png", "text"), ("same.png", "same"), *([BAD] if number in (1, 5) else [])]
        make_run(folder / "root", f"run-{number:04d}", rows, folder / "rows.jsonl", steps=number + 1, release=number % 50 == 1)
    reused = ("checkpoint", folder / "root/run-0001/fetch/checkpoint")
    make_step(folder / "root", "run-reuse", "finetune", "finetune", "tuned-model", [reused])
    with Index(folder / "root") as index:
        record_cached(index, "run-reuse")
    with (
        pytest.raises(InputError),
        at_place("run-bad!", "finetune", str(folder / "root")),
        attempt("finetune", folder / "root/run-bad/x", {"note": "</script><b>"}),
    ):
        raise InputError("The loss is not finite.")
    return folder / "root"


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    with Index(root) as index:
        return render_page(page_data(index, RUNS, 20_000))


def open_page(page: str, tmp_path: Path, *options: str) -> subprocess.CompletedProcess:
    assert CHROMIUM, "a browser is needed: apt-get install chromium"
    file = tmp_path / "lineage.html"
    file.write_text(page)
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}/user"]
    alone = ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--window-size=1400,1000"]
    command = [CHROMIUM, *quiet, *alone, *options, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)


def test_two_hundred_runs_are_searched_clicked_through_and_compared(page: str, root: Path, tmp_path: Path) -> None:
    with Index(root) as index:
        tree = page_data(index, RUNS, 0)["artifacts"]
    (tree,) = {made["tree_sha256"] for made in tree.values() if (made["run"], made["task"]) == ("run-0007", "finetune")}
    facts = f"<script>const ROW = {json.dumps(row_entry(*BAD, 3)['row_id'])}, TREE = {json.dumps(tree)};</script>"
    done = open_page(with_script(page, facts, SCRIPT), tmp_path, "--virtual-time-budget=20000", "--dump-dom")
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert seen["runs"] == RUNS
    assert seen["title"] == "run-bad"
    nodes = {node[0]: node[1:] for node in seen["nodes"]}
    assert nodes.keys() == {"fetc", "trai", "vali", "fine", "eval", "publ", "from"}
    assert nodes["fine"][1].startswith("succeeded, ")
    assert nodes["from"] == ["node source", "data"]
    assert ["trai", "finetune"] in seen["edges"]
    assert ["from", "train"] in seen["edges"]
    assert seen["leftToRight"]
    assert "steps" in seen["detail"]
    assert "2 parameters" in seen["detail"]
    assert seen["links"] == ["fetch", "train", "validation", "evaluate", "publish"]
    assert seen["clicked"] == "train"
    assert seen["usedBy"] == ["fetch", "validation", "finetune"]
    assert seen["back"] == "finetune"
    assert seen["entered"] == "train"
    assert seen["arrow"] in ("finetune", "validation")  # what is to the right of it, wherever that is in the list
    assert seen["arrowBack"] in ("train", "fetch")
    assert seen["slash"] == "find"
    assert len(seen["byRow"]) == seen["byShortRow"] == seen["byImage"] == 2
    assert all("bad.png" in text for text in seen["byRow"])
    assert [text[-8:] for text in seen["byParameter"] if "steps = 7" in text][-1] == "run-0006"
    assert len(seen["byHash"]) == 1
    assert seen["byNothing"] == "0 found"
    assert seen["found"] == ["", "train"]
    assert seen["failed"] == ["run-badf"]
    assert seen["error"]
    assert ["parameter", "steps", "2", "3"] in seen["compared"]
    assert ["metric", "final_loss", "0.5", "0.3333333333333333"] in seen["compared"]
    assert seen["chosen"] == ["run-0001", "run-0002"]
    assert seen["offered"] == ["run-0009", "run-0008"]
    assert "1 rows added, 2 removed, 0 changed" in seen["paragraphs"]
    assert ["added", "1", "2.png"] in [row[:3] for row in seen["compared"]]
    assert seen["cached"] == ["cached from run-0001"]
    assert seen["wide"]
    assert seen["unnamed"] == 0
    assert seen["errors"] == seen["fetched"] == []
    assert "CONSOLE" not in done.stderr, done.stderr


def test_a_page_without_rows_says_where_to_ask(root: Path, tmp_path: Path) -> None:
    with Index(root) as index:
        page = render_page(page_data(index, 3, 1))
    script = '<script>at("find").value = "x"; search();</script></body>'
    done = open_page(page.replace("</body>", script), tmp_path, "--dump-dom")
    assert "Not all data rows are on this page" in done.stdout
    assert "3 of 200 runs" in done.stdout
