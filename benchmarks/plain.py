"""What one writes in an afternoon: FastAPI, ONNX Runtime, and the states of all sessions in a dictionary.

    PLAIN_MODEL=<directory of an exported model> uvicorn benchmarks.plain:app

It runs every request alone, forgets nothing and takes no care: no order of steps, no retries, no limits, no batches.
"""

from __future__ import annotations

import json
import os
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

directory = Path(os.environ["PLAIN_MODEL"])
config = json.loads((directory / "config.json").read_text())
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
# That an input has a default is worth a warning to it.
options.log_severity_level = 3
model = onnxruntime.InferenceSession(
    directory / "model.onnx", options, providers=["CPUExecutionProvider"]
)
of_words = config["task"]["name"] == "next_word"
if of_words:
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    words = {i: word for word, i in vocabulary.items()}
    outputs = ["top_scores", "top_indices", "logsumexp"]
else:
    outputs = [output["name"] for output in config["outputs"]]
state_names = [state["input_name"] for state in config["state"]]
state_outputs = [state["output_name"] for state in config["state"]]
fresh = {s["input_name"]: np.zeros((1, *s["shape"]), s["dtype"]) for s in config["state"]}
sessions: dict[str, dict[str, Any]] = {}

app = FastAPI()


class StepRequest(BaseModel):
    """A step."""

    session: str
    input: Any


@app.get("/ready")
async def ready() -> dict[str, bool]:
    """Whether it listens."""
    return {"ready": True}


@app.post("/step")
async def step(request: StepRequest) -> dict[str, Any]:
    """Apply one input to a session."""
    state = sessions.get(request.session, fresh)
    value = vocabulary[request.input] if of_words else request.input
    tensor = np.array([[value]], config["inputs"][0]["dtype"])
    feeds = {config["inputs"][0]["name"]: tensor, "lengths": np.ones(1, np.int32), **state}
    if of_words:
        feeds["top_k"] = np.array([5])
    result = model.run(outputs + state_outputs, feeds)
    sessions[request.session] = dict(zip(state_names, result[-len(state_names) :], strict=True))
    if of_words:
        scores, indices, logsumexp = (values[0, 0] for values in result[:3])
        return {
            "result": [
                {"token": words[int(i)], "id": int(i), "score": exp(score - logsumexp)}
                for score, i in zip(scores[:5], indices[:5], strict=True)
            ]
        }
    return {"result": {outputs[0]: result[0][0, 0].tolist()}}
