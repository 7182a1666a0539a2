"""The evaluation's page in a browser: 5,000 rows, with nothing fetched."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
from page_scripts import with_script

from components.evaluate.report import render_report
from components.evaluate.results import judge
from paligemma.evaluation.metrics import Metric, mean_of
from paligemma.evaluation.predict import Prediction

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ROWS = 5000
ARABIC = "ما لون السيارة؟"
NEEDLE, BOX, ODD = 4321, "<loc0000><loc0000><loc0100><loc0300>", "a\n</script> 'dog'"

SCRIPT = (
    f"const ARABIC = {json.dumps(ARABIC)};"
    + """
const seen = {}, put = (id, value) => { at(id).value = value; at(id).dispatchEvent(new Event("input")); };
const shown = () => [...document.querySelectorAll("#rows tr")].map(row => Number(row.dataset.index));
const note = name => { seen[name] = { rows: shown(), place: at("place").textContent, count: at("count").textContent }; };
note("first");
at("next").click(); note("second");
put("order", "best"); note("best");
put("metric", "logprob"); note("logprob");
put("order", "worst"); put("metric", "exact_match"); put("find", "needle"); note("needle");
put("find", ""); put("prompt", ARABIC); note("arabic");
put("prompt", ""); put("most", "0.001"); note("most");
put("most", ""); put("find", "nowhere"); note("none");
put("find", "needle");
const row = document.querySelector("#rows tr");
seen.boxes = [...row.querySelectorAll("rect")].map(box => [box.getAttribute("class"), box.getAttribute("width")]);
seen.cells = [...row.querySelectorAll("td")].map(cell => [cell.textContent, cell.dir]);
put("find", ""); put("prompt", ARABIC);
seen.direction = getComputedStyle(document.querySelectorAll("#rows td")[1]).direction;
seen.fetched = performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:"));
document.body.innerHTML = "<pre id=seen></pre>";
document.getElementById("seen").textContent = JSON.stringify(seen);
"""
)


def page() -> str:
    """What the step writes of 5,000 rows, each a little better than the one before."""
    predictions = [
        Prediction(
            row_id=f"{number:064x}",
            prefix=ARABIC if number % 1000 == 7 else f"what is {number}?",
            target="<b>cat</b>" if number != NEEDLE else "<loc0000><loc0000><loc0100><loc0200> needle",
            references=("<b>cat</b>",),
            prediction=ODD if number != NEEDLE else BOX + ODD,
            logprob=-float(number),
            target_logprob=-1.0,
            target_tokens=1,
        )
        for number in range(ROWS)
    ]
    place = Metric(lambda rows: mean_of([number / ROWS for number in range(len(rows))]), best=None)
    judgement = judge("tuned", predictions, "", {"exact_match": place}, speed=50.0, max_new_tokens=8)
    return render_report(judgement, None, None, lambda row: np.zeros((8, 8, 3), np.uint8), "x")


def test_five_thousand_rows_are_sorted_filtered_and_paged_in_a_browser(tmp_path: Path) -> None:
    assert CHROMIUM, "a browser is needed: apt-get install chromium"
    file = tmp_path / "report.html"
    file.write_text(with_script(page(), SCRIPT))
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}/user"]
    alone = ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000"]
    command = [CHROMIUM, *quiet, *alone, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert seen["first"] == {"rows": list(range(50)), "place": "page 1 of 100", "count": "5000 shown"}
    assert seen["second"]["rows"] == list(range(50, 100))
    assert seen["best"] == {"rows": list(range(4999, 4949, -1)), "place": "page 1 of 100", "count": "5000 shown"}
    assert seen["logprob"]["rows"] == list(range(50))
    assert seen["needle"] == {"rows": [4321], "place": "page 1 of 1", "count": "1 shown"}
    assert seen["arabic"]["rows"] == [7, 1007, 2007, 3007, 4007]
    assert seen["most"]["rows"] == list(range(6))
    assert seen["none"]["rows"] == []
    assert seen["boxes"] == [["true", "200"], ["predicted", "300"]]
    assert seen["cells"][3] == [BOX + ODD, "auto"]
    assert seen["direction"] == "rtl"
    assert seen["fetched"] == []
