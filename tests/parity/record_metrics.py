"""Records what the official evaluation codes say of tricky answers, in `golden/metrics.json`, which tests compare ours with.

    .venv/bin/python tests/parity/record_metrics.py

The packages (pinned below) need much that we do not: they go, without what they depend on, to a temporary folder, and only the
files that hold the metrics are loaded from it. Needs a package index, and Java for the words of captions (Stanford's tokenizer
comes with pycocoevalcap).
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

AS_USERS_WRITE_THEM = [
    *ANSWERS,
    "Two",
    "Yes",
    "YES",
    "The Cat.",
    "A",
    "An apple",
    "No.",
    "Is it?",
    "Three dogs, two cats",
    "don’t",
    "E. coli",
    "(B)",
    "B. a cat",
    "3,5",
    "1,234,567",
    "$1,200.50",
    "12 %",
    "-0.5%",
    "Zürich",
    "МОСКВА",
    "ไทย",
    "हिन्दी",
    "ＡＢＣ",
    "<loc0001><loc0002><loc0003><loc0004> cat",
    "a" * 300,
]
"""Right answers; a model that gives them back is perfect."""

CORPORA = {
    "one row": [["a cat sits on a mat"]],
    "one row of one word": [["Cat."]],
    "equal references": [["a cat sits on a mat"]] * 5,
    "different": [[sentence] for sentence in SENTENCES],
    "several references": [SENTENCES[start : start + 5] for start in range(0, 20, 5)],
    "short": [["a cat"], ["two dogs"], ["people"], ["a train"]],
    "some empty": [["a cat sits on a mat"], [""], ["two dogs play in the snow"]],
}
"""Captions, of which a perfect model gives the first of each row."""

WORDS = [
    "A man's dog, isn't it?  Two black-and-white cats.",
    "It's 3:30 pm; 1,000 people (about) wait.",
    "$5 for 5% of it & more",
    "U.S.A. at 8 a.m.",
    "red/white car... half - way -- there",
    "hello,world",
    "they'll say we've \"quoted\" ‘it’ “twice”",
    "the dogs' toys in the 90's, a 2-year-old",
    "日本の駅 — café",
    "हिन्दी में ไทยแลนด์ مرحبا بالعالم",
    "naïve Straße ÀÉ",
    "5° → x = y + 2 ~ 1/2 cup a*b",
    "!",
    "...",
    "",
]
BRACKETS = ("-lrb-", "-rrb-")
"""Words that our tokenizer leaves out, on purpose: nobody says them."""


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
    cases = []
    for _ in range(250):
        references = draw.sample(SENTENCES, draw.randint(1, 5))
        answer = draw.choice([*references, *SENTENCES])
        if draw.random() < 0.5:
            some = answer.split()
            some.insert(draw.randrange(len(some) + 1), draw.choice(" ".join(SENTENCES).split()))
            answer = " ".join(some)
        cases.append({"answer": answer, "references": references})
    scores = caption_scores([case["references"] for case in cases], [case["answer"] for case in cases])
    for n, case in enumerate(cases):
        case |= {metric: float(values[n]) for metric, (_, values) in scores.items()}
    return {"cases": cases, **{metric: value for metric, (value, _) in scores.items()}}


def perfect_cases(folder: Path, anls, relaxed) -> dict:
    """What a perfect model has by the official codes. Of VQA, the ten people say what the official code makes of the answer."""
    official = load(folder / "lavis/common/vqa_tools/vqa_eval.py").VQAEval
    evaluation = official(None, None)

    def normalized(text: str) -> str:
        line = text.replace("\n", " ").replace("\t", " ").strip()
        return evaluation.processDigitArticle(evaluation.processPunctuation(line))

    texts = [
        {"text": text, "vqa_normalized": normalized(text), "anls": anls([text], [text])["anls"], "relaxed": relaxed(text, text)}
        for text in dict.fromkeys(AS_USERS_WRITE_THEM)
    ]
    sys.path.insert(0, str(folder))
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def tokenized(rows: list[list[str]]) -> list[list[str]]:
        found = PTBTokenizer().tokenize({n: [{"caption": text} for text in row] for n, row in enumerate(rows)})
        return [found[n] for n in range(len(rows))]

    corpora = {}
    for name, rows in CORPORA.items():
        words = tokenized(rows)
        scores = caption_scores(words, [row[0] for row in words])
        corpora[name] = {"references": rows, **{metric: value for metric, (value, _) in scores.items()}}
    words = [{"text": text, "words": [w for w in found.split() if w not in BRACKETS]} for text, (found,) in
             zip(WORDS, tokenized([[text] for text in WORDS]), strict=True)]  # fmt: skip
    return {"texts": texts, "corpora": corpora, "words": words}


def caption_scores(references: list[list[str]], answers: list[str]) -> dict[str, tuple[float, list[float]]]:
    """Of all captions, and of each; words are separated by spaces."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth, found = dict(enumerate(references)), {n: [answer] for n, answer in enumerate(answers)}
    bleu, bleus = Bleu(4).compute_score(truth, found, verbose=0)
    cider, ciders = Cider().compute_score(truth, found)
    rouge, rouges = Rouge().compute_score(truth, found)
    return {"bleu": (bleu[3], bleus[3]), "cider": (float(cider), ciders), "rouge_l": (float(rouge), rouges)}


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
            "perfect": perfect_cases(folder, anls, relaxed),
        }
    GOLDEN.write_text(json.dumps(recorded, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
