"""OpenVINO GenAI's continuous batching behind POST /v1/completions, for `cpu.py` alone.

    python openvino_server.py MODEL_FOLDER PORT THREADS

Runs in an interpreter that has openvino-genai, openvino-tokenizers and aiohttp, on a model that
optimum-intel exported. It takes token ids and answers with a stream: what the client of the
benchmark sends and reads, no more.
"""

import asyncio
import itertools
import json
import sys
import threading
from collections import defaultdict
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from aiohttp import web

TOKENS_PER_STEP = 512


class Engine:
    """Steps the pipeline in a thread while there are requests; hands tokens to their queues."""

    def __init__(self, folder: Path, threads: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = TOKENS_PER_STEP
        scheduler.max_num_seqs = 64
        scheduler.cache_size = 3
        scheduler.enable_prefix_caching = False
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(folder), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self._ids = itertools.count()
        self._wake = threading.Condition()
        self._waiting: list[tuple] = []
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, prompt: list[int], max_tokens: int) -> asyncio.Queue:
        queue: asyncio.Queue = asyncio.Queue()
        with self._wake:
            self._waiting.append((prompt, max_tokens, queue))
            self._wake.notify()
        return queue

    def _run(self) -> None:
        live: dict = {}
        while True:
            with self._wake:
                while not self._waiting and not live:
                    self._wake.wait()
                new, self._waiting = self._waiting, []
            for prompt, max_tokens, queue in new:
                config = openvino_genai.GenerationConfig()
                config.max_new_tokens = max_tokens
                config.ignore_eos = True
                ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
                live[self._pipeline.add_request(next(self._ids), ids, config)] = queue
            self._pipeline.step()
            told = defaultdict(list)
            for handle, queue in list(live.items()):
                while handle.can_read():
                    for output in handle.read().values():
                        told[queue] += output.generated_ids
                if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                    told[queue].append(None)
                    del live[handle]
            self._loop.call_soon_threadsafe(self._tell, dict(told))

    @staticmethod
    def _tell(told: dict) -> None:
        for queue, tokens in told.items():
            queue.put_nowait(tokens)


async def completions(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    queue = request.app["engine"].submit(body["prompt"], body["max_tokens"])
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    count, is_open = 0, True
    while is_open:
        tokens = await queue.get()
        is_open = None not in tokens
        found = [token for token in tokens if token is not None]
        count += len(found)
        for token in found:
            event = {"choices": [{"index": 0, "text": f" {token}"}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
    usage = {"choices": [], "usage": {"completion_tokens": count}}
    await response.write(f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode())
    return response


async def health(request: web.Request) -> web.Response:
    return web.Response()


async def main() -> None:
    folder, port, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    app = web.Application()
    app["engine"] = Engine(folder, threads)
    app.add_routes([web.get("/health", health), web.post("/v1/completions", completions)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
