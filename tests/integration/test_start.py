"""What a process that starts does not spend its time on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, sys
from pathlib import Path
import httpx
from service.app import build, build_context
from service.settings import Settings

async def serve():
    context = build_context(Settings(models=Path(sys.argv[1])))
    app = build(context)
    async with app.router.lifespan_context(app):
        while context.repository.loading:
            await asyncio.sleep(0)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            assert (await client.get("/health/ready")).status_code == 200
            body = {"inputs": [["rainy"]]}
            (await client.post("/v1/models/weekend-planner/predict", json=body)).raise_for_status()
            assert not {"fastapi", "pydantic"} & sys.modules.keys()
            pages = await asyncio.gather(
                *(client.get(path) for path in ("/openapi.json", "/docs", "/redoc"))
            )
            assert [page.status_code for page in pages] == [200, 200, 200]
            assert "fastapi" in sys.modules

asyncio.run(serve())
"""


def test_fastapi_is_not_there_before_its_page_is_asked_for(model_directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(model_directory)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
