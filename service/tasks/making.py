"""The task of a model, by its config."""

from __future__ import annotations

from collections.abc import Mapping

from service.contract import (
    CONFIG_FILE,
    ContractError,
    Forecast,
    Labels,
    ModelConfig,
    Ner,
    NextWord,
    Sentiment,
)
from service.tasks.forecast import ForecastTask
from service.tasks.ner import NerTask
from service.tasks.next_word import NextWordTask
from service.tasks.numbers import LabelsTask, TensorsTask
from service.tasks.protocol import Task
from service.tasks.sentiment import SentimentTask


def make_task(config: ModelConfig, files: Mapping[str, bytes]) -> Task:
    """The task of a model.

    Raises:
        ContractError: A file it needs is missing or unreadable.
    """
    spec = config.task
    if isinstance(spec, NextWord):
        if spec.tokenizer not in files:
            raise ContractError(f"{CONFIG_FILE} lists no hash for {spec.tokenizer}")
        return NextWordTask(config, spec, files[spec.tokenizer])
    if isinstance(spec, Sentiment):
        if spec.tokenizer not in files:
            raise ContractError(f"{CONFIG_FILE} lists no hash for {spec.tokenizer}")
        return SentimentTask(config, spec, files[spec.tokenizer])
    if isinstance(spec, Ner):
        for name in (spec.tokenizer, *spec.lists):
            if name not in files:
                raise ContractError(f"{CONFIG_FILE} lists no hash for {name}")
        return NerTask(config, spec, files)
    if isinstance(spec, Labels):
        return LabelsTask(config, spec)
    if isinstance(spec, Forecast):
        return ForecastTask(config, spec)
    return TensorsTask(config)
