"""Makes the calls of KServe's own client that standard input names, and writes what came as JSON.

A process of its own: KServe's and Triton's clients bring messages of the same names, and one process takes one set.
"""

import asyncio
import json
import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")  # what the client's packages deprecate is theirs

import httpx  # noqa: E402
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig  # noqa: E402


def _request(model: str, inputs: list[dict[str, Any]], parameters: dict[str, Any]) -> InferRequest:
    return InferRequest(model, [InferInput(**one) for one in inputs], parameters=parameters)


async def _call(url: str, protocol: str, method: str, arguments: dict[str, Any]) -> Any:
    if request := arguments.pop("request", None):
        arguments["data"] = _request(**request)
    async with InferenceRESTClient(RESTConfig(protocol=protocol)) as client:
        try:
            answer = await getattr(client, method)(url, **arguments)
        except httpx.HTTPStatusError as error:
            return {"status": error.response.status_code, "message": str(error)}
    return answer.to_dict() if hasattr(answer, "to_dict") else answer


async def _main() -> list[Any]:
    return [await _call(**call) for call in json.load(sys.stdin)]


json.dump(asyncio.run(_main()), sys.stdout)
