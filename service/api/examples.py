"""Example requests with their answers, for the OpenAPI page. A test sends the requests to the shipped models."""

from __future__ import annotations

from typing import Any

Examples = dict[str, tuple[Any, Any]]

PREDICT: Examples = {
    "weekend planner": (
        {"inputs": [["rainy", "sunny", "rainy"]]},
        {
            "model": "weekend-planner",
            "version": 1,
            "results": [
                [
                    {"label": "movies", "score": 1.0},
                    {"label": "movies", "score": 1.0},
                    {"label": "party", "score": 1.0},
                ]
            ],
        },
    ),
    "next word": (
        {"inputs": ["The weather today is very"], "parameters": {"top_k": 2}},
        {
            "model": "next-word-lstm",
            "version": 1,
            "results": [
                [
                    {"token": "low", "id": 496, "score": 0.03},
                    {"token": "well", "id": 110, "score": 0.02},
                ]
            ],
        },
    ),
}

GENERATE: Examples = {
    "sampled": (
        {"inputs": "The game was", "max_tokens": 2, "seed": 7},
        {
            "model": "next-word-lstm",
            "version": 1,
            "text": " released in",
            "tokens": [
                {"index": 0, "id": 121, "token": "released", "text": " released", "logprob": -2.1},
                {"index": 1, "id": 8, "token": "in", "text": " in", "logprob": -1.0},
            ],
            "finish_reason": "length",
            "seed": 7,
        },
    )
}

SESSION_GENERATE: Examples = {
    "from the session's state": (
        {"max_tokens": 1, "temperature": 0},
        {
            "model": "next-word-lstm",
            "version": 1,
            "text": " the",
            "tokens": [
                {"index": 0, "id": 0, "token": "the", "text": " the", "logprob": -1.5, "seq": 3}
            ],
            "finish_reason": "length",
            "seed": 12,
            "session": "k3x0Jb1T8mYw",
            "seq": 3,
        },
    )
}

_SESSION = {
    "session": "k3x0Jb1T8mYw",
    "model": "weekend-planner",
    "version": 1,
    "seq": 0,
    "ttl_s": 900.0,
    "idle_s": 0.0,
    "created_at": 1790000000.0,
    "priority": "normal",
    "resident": False,
    "busy": False,
}

SESSION: Examples = {"new": ({"model": "weekend-planner"}, _SESSION)}

SESSION_PUT: Examples = {
    "own id": ({"model": "weekend-planner", "ttl_s": 60}, _SESSION | {"ttl_s": 60.0})
}

STEPS: Examples = {
    "two weekends": (
        {"inputs": ["rainy", "sunny"], "seq": 1},
        {
            "session": "k3x0Jb1T8mYw",
            "first": 1,
            "seq": 2,
            "duplicate": False,
            "results": [{"label": "movies", "score": 1.0}, {"label": "movies", "score": 1.0}],
        },
    )
}
