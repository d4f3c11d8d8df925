"""The weekend planner in five lines, and a session of it that notices any lost or doubled weekend."""

from __future__ import annotations

from itertools import cycle

import httpx

MODEL = "weekend-planner"
ACTIVITIES = ("museum", "movies", "party")
_WEATHER = cycle(["rainy", "sunny", "rainy", "rainy"])


def planned(weather: list[str]) -> list[str]:
    """Activities of a session: sunny repeats the last one, rainy takes the next; before all was museum."""
    rainy = 0
    return [ACTIVITIES[(rainy := rainy + (each == "rainy")) % 3] for each in weather]


class Probe:
    """A session in progress over HTTP."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._weather: list[str] = []
        self.session = http.post("/v1/sessions", json={"model": MODEL}).json()["session"]

    def step(self) -> None:
        """One more weekend: answered, numbered and planned as if nothing else had happened."""
        self._weather.append(next(_WEATHER))
        sent = {"inputs": self._weather[-1:], "seq": len(self._weather)}
        answer = self._http.post(f"/v1/sessions/{self.session}/steps", json=sent)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert (body["seq"], body["duplicate"]) == (len(self._weather), False)
        assert body["results"][0]["label"] == planned(self._weather)[-1]

    def end(self) -> None:
        assert self._http.delete(f"/v1/sessions/{self.session}").status_code == 204
