"""A few documents a task, made for the tests, in the layout of a folder for `--datasets`."""

import json
from pathlib import Path
from typing import Any

import zstandard

_PAGE = """ = {name} =

 {name} is a village @-@ town of 1 @,@ 204 people in the north ; it lies on a river , the " Alder " , which floods .
 = = History = =
 The mill 's wheel was built in 1761 ( rebuilt in 1802 ) and stood still for 30 @.@ 5 years . Nobody knows why .
"""


def _choice(question: str, answers: list[str], right: int) -> dict[str, Any]:
    labels = ["A", "B", "C", "D", "E"][: len(answers)]
    return {
        "id": question[:3],
        "question": question,
        "choices": {"text": answers, "label": labels},
        "answerKey": labels[right],
    }


DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    "arc_easy.test": [
        _choice("Which of these melts first?", ["ice", "iron", "sand", "glass"], 0),
        _choice("Which animal lays eggs?", ["a cow", "a hen", "a dog"], 1),
        _choice("What do plants need?", ["light", "coal", "noise", "salt", "paint"], 0),
        _choice("Which is a star?", ["the Moon", "Mars", "the Sun", "a comet"], 2),
    ],
    "boolq.validation": [
        {"passage": "Tea -- Tea is a drink.", "question": "is tea a drink", "idx": 0, "label": 1},
        {"passage": "Salt -- Salt is a mineral.", "question": "is salt a plant", "idx": 1, "label": 0},
        {"passage": "Rain -- Rain is water that falls. " * 6, "question": "is rain wet", "idx": 2, "label": 1},
    ],
    "copa.validation": [
        {
            "premise": "The cup fell.",
            "choice1": "It broke.",
            "choice2": "It sang.",
            "question": "effect",
            "idx": 0,
            "label": 0,
        },
        {
            "premise": "The man shivered.",
            "choice1": "He ate.",
            "choice2": "He was cold.",
            "question": "cause",
            "idx": 1,
            "label": 1,
        },
        {
            "premise": "The lamp went out.",
            "choice1": "It was read.",
            "choice2": "The oil was gone.",
            "question": "cause",
            "idx": 2,
            "label": 1,
        },
    ],
    "piqa.validation": [
        {"goal": "Open a jar", "sol1": "Turn the lid.", "sol2": "Wash the lid with a fork.", "label": 0},
        {"goal": "Dry a cloth", "sol1": "Wet it.", "sol2": "Hang it in the sun.", "label": 1},
        {"goal": "Cool soup", "sol1": "Boil it longer.", "sol2": "Wait a while.", "label": 1},
    ],
    "sciq.test": [
        {
            "question": "What carries blood?",
            "support": " Veins carry blood.",
            "distractor1": "bones",
            "distractor2": "hair",
            "distractor3": "nails",
            "correct_answer": "veins",
        },
        {
            "question": "What is water made of?",
            "support": "",
            "distractor1": "gold and tin",
            "distractor2": "sand",
            "distractor3": "air",
            "correct_answer": "hydrogen and oxygen",
        },
    ],
    "rte.validation": [
        {"sentence1": "Ann bought a red car.", "sentence2": "Ann has a car.", "label": 0, "idx": 0},
        {"sentence1": "It rained in Rome.", "sentence2": "Rome was dry.", "label": 1, "idx": 1},
        {"sentence1": "Two men met.", "sentence2": "Nobody met.", "label": 1, "idx": 2},
    ],
    "hellaswag.validation": [
        {
            "ind": 4,
            "activity_label": "Baking",
            "ctx_a": "A man mixes flour.",
            "ctx_b": "he",
            "ctx": "A man mixes flour. he",
            "endings": ["adds water [step] slowly.", "flies off.", "sells a horse.", "sings  to it."],
            "label": "0",
        },
        {
            "ind": 9,
            "activity_label": "Rowing",
            "ctx_a": "[header] How to row [title] Sit down.",
            "ctx_b": "",
            "ctx": "[header] How to row [title] Sit down.",
            "endings": ["Eat the oar.", "Take the oars.", "Read a map of the sky.", "Sleep."],
            "label": "1",
        },
    ],
    "wikitext2.test.pages": [{"page": _PAGE.format(name=name)} for name in ("Alderford", "Elmstead")],
    "lambada_openai.test": [
        {"text": "She lit the lamp, and then she blew out the lamp"},
        {"text": 'He had a dog.\n"Come here," he said to the dog'},
        {"text": "They rowed to the island, but nobody lived on the island"},
    ],
}


def write_documents(folder: Path) -> Path:
    """One file a task; HellaSwag's is compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, documents in DOCUMENTS.items():
        text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        if name.startswith("hellaswag"):
            (folder / f"{name}.jsonl.zst").write_bytes(zstandard.compress(text.encode()))
        else:
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder
