"""Records what the official evaluation codes say of tricky answers, in `golden/metrics.json`, which tests compare ours with.

    .venv/bin/python tests/parity/record_metrics.py

The packages (pinned below) need much that we do not: they go, without what they depend on, to a temporary folder, and only the
files that hold the metrics are loaded from it. Needs a package index.
"""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

PACKAGES = ["salesforce-lavis==1.0.2", "pycocoevalcap==1.2", "lmms-eval==0.7.3"]
GOLDEN = Path(__file__).parent / "golden/metrics.json"

ANSWERS = [
    "yes",
    "no",
    "Yes.",
    "the cat",
    "a cat",
    "an  apple",
    "cat",
    "two",
    "2",
    "ten",
    "none",
    "0",
    "zero",
    "dont",
    "don't",
    "couldntve",
    "couldn't've",
    "its",
    "it's",
    "1,000",
    "1000",
    "1, 000",
    "3.5",
    "3.50",
    ".5",
    "half-moon",
    "half moon",
    "red/white",
    "red / white",
    "red, white",
    "red,white",
    "u.s.a.",
    "U.S.A",
    "st. louis",
    "st louis",
    "12:30",
    "12.30 pm",
    "$5",
    "5%",
    "5 %",
    "50%",
    "0.05",
    "105",
    "100",
    "95",
    "94.9",
    "105.1",
    "-3",
    "-3.1",
    "1e3",
    "nan",
    "inf",
    "(left)",
    '"left"',
    "left!",
    "left?",
    "what's up",
    "whats up",
    "somebody'd",
    "yall'd've",
    "'twas",
    "twas",
    "o'clock",
    "oclock",
    "é",
    "café",
    "café",
    "naïve",
    "Straße",
    "STRASSE",
    "日本",
    "日本語",
    "مرحبا",
    "שלום",
    "🙂",
    "🙂🙂",
    "a",
    "the",
    "an",
    "the the",
    "ten thousand",
    "one two",
    "black and white",
    "white and black",
    "@home",
    "#1",
    "",
    " ",
    "\n",
    "yes\nno",
    "a\tb",
    "  spaced  out  ",
    "........................................",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "new   york",
]
SENTENCES = [
    "a man riding a wave on top of a surfboard",
    "a man rides a wave",
    "the man surfs",
    "a cat",
    "cat",
    "a black-and-white cat sits on a chair",
    "two dogs play",
    "two dogs are playing in the snow .",
    "a a a a a",
    "a b c d e f g h",
    "h g f e d c b a",
    "a plate of food with broccoli and rice",
    "some food on a plate",
    "a train",
    "the train is at the station",
    "a train at a station at night",
    "people",
    "a group of people standing around",
    "une femme avec un chien",
    "日本 の 駅",
    "a person 's hand holding 3 apples",
    "it is n't here",
    "the the the the",
    "a red bus driving down a street next to a tall building",
]


def load(path: Path) -> ModuleType:
    """One file as a module, without the package around it."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def function(path: Path, *names: str):
    """Functions of a file whose imports are not there, by their source."""
    import ast

    wanted = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name in names]
    for node in wanted:
        node.decorator_list = []
    scope: dict = {}
    exec(compile(ast.Module(wanted, []), str(path), "exec"), scope)
    return scope[names[0]]


def vqa_cases(folder: Path, draw: random.Random) -> list[dict]:
    official = load(folder / "lavis/common/vqa_tools/vqa_eval.py").VQAEval

    class Answers:
        def __init__(self, qa: dict) -> None:
            self.qa = qa

        def getQuesIds(self):  # noqa: N802
            return list(self.qa)

    cases = []
    for _ in range(400):
        near = draw.sample(ANSWERS, 3)
        references = [draw.choice(near) for _ in range(10)]
        if draw.random() < 0.2:
            references = [references[0]] * 10
        answer = draw.choice([*near, draw.choice(ANSWERS)])
        truth = {0: {"answers": [{"answer": text, "answer_id": n} for n, text in enumerate(references)]}}
        truth[0] |= {"question_type": "", "answer_type": ""}
        judge = official(Answers(truth), Answers({0: {"answer": answer}}), n=12)
        judge.updateProgress = lambda _: None
        judge.evaluate()
        cases.append({"answer": answer, "references": references, "score": judge.evalQA[0] / 100})
    return cases


def answer_cases(score, draw: random.Random) -> list[dict]:
    cases = []
    for _ in range(300):
        answer, references = draw.choice(ANSWERS), draw.sample(ANSWERS, draw.randint(1, 3))
        if draw.random() < 0.3:
            place = draw.randrange(len(answer) + 1)
            references[0] = answer[:place] + draw.choice("ax1. ") + answer[place + 1 :]
        cases.append({"answer": answer, "references": references, "score": float(score(answer, references))})
    return cases


def caption_cases(folder: Path, draw: random.Random) -> dict:
    sys.path.insert(0, str(folder))
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    cases = []
    for _ in range(250):
        references = draw.sample(SENTENCES, draw.randint(1, 5))
        answer = draw.choice([*references, *SENTENCES])
        if draw.random() < 0.5:
            some = answer.split()
            some.insert(draw.randrange(len(some) + 1), draw.choice(" ".join(SENTENCES).split()))
            answer = " ".join(some)
        cases.append({"answer": answer, "references": references})
    truth = {n: case["references"] for n, case in enumerate(cases)}
    found = {n: [case["answer"]] for n, case in enumerate(cases)}
    bleu, bleus = Bleu(4).compute_score(truth, found, verbose=0)
    cider, ciders = Cider().compute_score(truth, found)
    rouge, rouges = Rouge().compute_score(truth, found)
    for n, case in enumerate(cases):
        case |= {"bleu": bleus[3][n], "cider": float(ciders[n]), "rouge_l": float(rouges[n])}
    return {"cases": cases, "bleu": bleu[3], "cider": float(cider), "rouge_l": float(rouge)}


def main() -> None:
    """Writes the file."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *PACKAGES]
        subprocess.run(install, check=True)
        anls = function(folder / "lmms_eval/api/metrics.py", "anls", "levenshtein_distance")
        relaxed = function(folder / "lmms_eval/tasks/chartqa/utils.py", "relaxed_correctness")
        recorded = {
            "packages": PACKAGES,
            "vqa": vqa_cases(folder, draw),
            "anls": answer_cases(lambda answer, references: anls(references, [answer])["anls"], draw),
            "relaxed": answer_cases(lambda answer, references: any(relaxed(answer, r) for r in references), draw),
            "captions": caption_cases(folder, draw),
        }
    GOLDEN.write_text(json.dumps(recorded, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
