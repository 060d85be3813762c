#!/usr/bin/env python3
"""The embedder's peers on the same weights and the same texts; benches/src/embed starts it and asks it for one figure
at a time, so that Weir and its peers take turns.

    embed_peers.py MODEL_DIR TEXTS FOLDER

TEXTS has one JSON object a line: {"set": NAME, "text": TEXT}. FOLDER is for what is exported and computed. Requests come
line by line on stdin as JSON, each is answered by one line on stdout:

    {"do": "list"}                                            {"peers": [{"name": ..., "precision": ...}], "on_gpu": PEER,
                                                              "versions": ...}
    {"do": "tune", "peer": NAME, "set": SET, "threads": N}    {"batch": SIZE, "computed_in": PRECISION}: what is
                                                              fastest on a part of the set
    {"do": "run", "peer": NAME, "set": SET, "threads": N}     {"seconds": S}: all texts of the set to vectors
    {"do": "compare", "peer": NAME, "set": SET}               {"p1_cosine": C, "mean_cosine": C}: to torch f32
    {"do": "compare", "file": FILE, "set": SET}               the same of vectors in a file, little-endian f32

What fails is answered by {"error": ...}.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
# What libraries print must not stand among the answers.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import numpy as np
import onnxruntime
import openvino
import sentence_transformers
import tokenizers
import torch
from sentence_transformers import SentenceTransformer

MODEL, TEXTS, FOLDER = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
LONGEST = 256
BATCHES = [8, 16, 32, 64]
BATCHES_ON_GPU = [32, 64, 128, 256, 512]
ON_GPU = "torch f16 on the GPU"
# Seconds of a trial after which no other batch size is tried.
PATIENCE = 4


def layers():
    """Transformer, mean pooling and normalisation, whatever this version calls their module."""
    try:
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    except ImportError:
        from sentence_transformers.models import Normalize, Pooling, Transformer
    return Transformer, Pooling, Normalize


class Torch:
    """sentence-transformers as its users call it."""

    def __init__(self, dtype: torch.dtype, device: str = "cpu"):
        transformer, pooling, normalize = layers()
        bert = transformer(str(MODEL), max_seq_length=LONGEST)
        self.model = SentenceTransformer(modules=[bert, pooling(384, pooling_mode="mean"), normalize()], device=device)
        self.model.to(dtype)

    def embed(self, texts: list[str], batch: int, threads: int) -> np.ndarray:
        torch.set_num_threads(threads)
        vectors = self.model.encode(texts, batch_size=batch, convert_to_tensor=True, show_progress_bar=False)
        return vectors.float().cpu().numpy()


class Graph:
    """A runtime of the exported graph: batches of similar length, padded to their longest text."""

    def __init__(self):
        self.tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        self.tokenizer.enable_truncation(LONGEST)
        self.tokenizer.enable_padding()
        self.compiled = {}

    def embed(self, texts: list[str], batch: int, threads: int) -> np.ndarray:
        if threads not in self.compiled:
            self.compiled[threads] = self.compile(threads)
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        vectors = np.empty((len(texts), 384), np.float32)
        for begin in range(0, len(order), batch):
            places = order[begin : begin + batch]
            encoded = self.tokenizer.encode_batch([texts[place] for place in places])
            ids = np.array([text.ids for text in encoded], np.int64)
            mask = np.array([text.attention_mask for text in encoded], np.int64)
            rows = self.compute(self.compiled[threads], ids, mask)
            sums = np.einsum("btw,bt->bw", rows, mask.astype(np.float32))
            vectors[places] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        return vectors


class OpenVino(Graph):
    def __init__(self, graph: Path, precision: str):
        super().__init__()
        self.core, self.graph, self.precision = openvino.Core(), graph, precision

    def compile(self, threads: int):
        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = self.core.compile_model(str(self.graph), "CPU", settings)
        # A processor without bf16 computes in f32 all the same.
        self.used = {"f32": "f32", "bf16": "bf16"}.get(model.get_property("INFERENCE_PRECISION_HINT").to_string(), "?")
        return model.create_infer_request()

    def compute(self, request, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return request.infer({"input_ids": ids, "attention_mask": mask})[0]


class Onnx(Graph):
    def __init__(self, graph: Path):
        super().__init__()
        self.graph = graph

    def compile(self, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(str(self.graph), options, providers=["CPUExecutionProvider"])

    def compute(self, session, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def export() -> tuple[Path, Path]:
    """The weights as a graph in f32, and the same with dynamic int8."""
    graph, quantized = FOLDER / "model.onnx", FOLDER / "model-int8.onnx"
    if not quantized.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.transformers.optimizer import optimize_model
        from transformers import AutoModel

        class Rows(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.bert = AutoModel.from_pretrained(MODEL, attn_implementation="eager").eval()

            def forward(self, input_ids, attention_mask):
                return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

        ids = torch.randint(1000, 2000, (2, 12))
        plain = FOLDER / "plain.onnx"
        axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("tokens", min=2, max=LONGEST)}
        torch.onnx.export(
            Rows(),
            (ids, torch.ones_like(ids)),
            str(plain),
            input_names=["input_ids", "attention_mask"],
            output_names=["rows"],
            dynamic_shapes=(axes, axes),
            dynamo=True,
            external_data=False,
        )
        # Attention, GELU and normalisation as ONNX Runtime's own fused operations, where it finds them.
        fused = optimize_model(str(plain), model_type="bert", num_heads=12, hidden_size=384, opt_level=0)
        print("fused:", fused.get_fused_operator_statistics(), file=sys.stderr)
        fused.save_model_to_file(str(graph))
        # Without VNNI products of whole bytes overflow: ONNX Runtime advises seven bits there.
        narrow = "vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
        quantize_dynamic(str(graph), str(quantized), weight_type=QuantType.QInt8, reduce_range=narrow)
    return graph, quantized


def peers() -> dict:
    graph, quantized = export()
    found = {
        "torch f32": ("f32", lambda: Torch(torch.float32)),
        "torch bf16": ("bf16", lambda: Torch(torch.bfloat16)),
        "openvino f32": ("f32", lambda: OpenVino(FOLDER / "plain.onnx", "f32")),
        "openvino bf16": ("bf16", lambda: OpenVino(FOLDER / "plain.onnx", "bf16")),
        "onnxruntime f32": ("f32", lambda: Onnx(graph)),
        "onnxruntime int8": ("int8", lambda: Onnx(quantized)),
    }
    if torch.cuda.is_available():
        found[ON_GPU] = ("f16", lambda: Torch(torch.float16, "cuda"))
    return {name: (precision, make()) for name, (precision, make) in found.items()}


class Peers:
    def __init__(self):
        self.sets = {}
        for line in TEXTS.read_text(encoding="utf-8").splitlines():
            text = json.loads(line)
            self.sets.setdefault(text["set"], []).append(text["text"])
        self.peers = peers()
        self.batches = {}
        self.vectors = {}

    def answer(self, request: dict) -> dict:
        return getattr(self, request.pop("do"))(**request)

    def versions(self) -> dict:
        return {
            "torch": torch.__version__,
            "sentence_transformers": sentence_transformers.__version__,
            "openvino": openvino.__version__,
            "onnxruntime": onnxruntime.__version__,
        }

    def list(self) -> dict:
        names = {name: {"name": name, "precision": precision} for name, (precision, _) in self.peers.items()}
        return {"on_gpu": names.pop(ON_GPU, None), "peers": list(names.values()), "versions": self.versions()}

    def tune(self, peer: str, set: str, threads: int) -> dict:
        model = self.peers[peer][1]
        batches = BATCHES_ON_GPU if peer == ON_GPU else BATCHES
        if (peer, set) not in self.batches:
            # Texts of the lengths that are in the middle: as many as the largest batch has.
            texts = sorted(self.sets[set], key=len)
            texts = texts[len(texts) // 3 :][: batches[-1]]
            model.embed(texts[: batches[0]], batches[0], threads)
            best = (float("inf"), batches[0])
            for batch in batches:
                started = time.perf_counter()
                model.embed(texts, batch, threads)
                seconds = time.perf_counter() - started
                best = min(best, (seconds, batch))
                if seconds > PATIENCE:
                    break
            self.batches[peer, set] = best[1]
        # The first call with another number of threads prepares for it.
        model.embed(self.sets[set][:1], 1, threads)
        return {"batch": self.batches[peer, set], "computed_in": getattr(model, "used", self.peers[peer][0])}

    def run(self, peer: str, set: str, threads: int) -> dict:
        # Threads of the one before may still spin.
        time.sleep(0.2)
        started = time.perf_counter()
        vectors = self.peers[peer][1].embed(self.sets[set], self.batches[peer, set], threads)
        seconds = time.perf_counter() - started
        self.vectors[peer, set] = vectors
        return {"seconds": seconds}

    def compare(self, set: str, peer: str = "", file: str = "") -> dict:
        reference = self.vectors["torch f32", set]
        if file:
            vectors = np.fromfile(file, "<f4").reshape(reference.shape)
        else:
            vectors = self.vectors[peer, set]
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = np.sum(reference.astype(np.float64) * vectors, axis=1)
        return {"p1_cosine": float(np.percentile(cosines, 1)), "mean_cosine": float(np.mean(cosines))}


def main() -> None:
    all_peers = Peers()
    for line in sys.stdin:
        try:
            answer = all_peers.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001: whatever it is, the bench says it and goes on without this figure
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
