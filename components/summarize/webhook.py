"""Sends a message about how a run ended. Its failure never makes anything else fail."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import requests

from paligemma.errors import InputError
from paligemma.google.secret_manager import read_secret
from paligemma.retry import retrying
from paligemma.web_address import parse_web_address
from paligemma.web_client import request, webhook_rule

URL_VARIABLE = "PALIGEMMA_WEBHOOK"
FILE_VARIABLE = "PALIGEMMA_WEBHOOK_FILE"
SECRET_VARIABLE = "PALIGEMMA_WEBHOOK_SECRET"
_SECONDS = (5.0, 10.0)  # seconds to connect, and to answer
_BUDGET = 30.0  # seconds in which to find a connection

log = logging.getLogger("paligemma.lineage")


def notify(message: dict) -> bool:
    """Posts a message as JSON to the address in the environment, a mounted file or Secret Manager. Returns whether it was
    accepted.

    The address is a secret, since whoever has it can post: no message or log shows it. Does not follow redirects.
    """
    try:
        url = _address()
        if not url:
            return False
        address = parse_web_address(url, "The webhook's address")

        def post() -> requests.Response:
            with request("POST", address, webhook_rule, json=message, timeout=_SECONDS) as answer:
                return answer

        answer = retrying(post, _BUDGET, idempotent=False)
        if not answer.ok or answer.is_redirect:
            log.warning("the notification was answered with status %d", answer.status_code)
            return False
    except InputError as error:
        log.warning("no notification was sent: %s", error)
        return False
    except Exception as error:  # a notification must not fail the step, and the text may hold the address
        log.warning("no notification was sent: %s", type(error).__name__)
        return False
    return True


def _address() -> str:
    if url := os.environ.get(URL_VARIABLE):
        return url.strip()
    if file := os.environ.get(FILE_VARIABLE):
        try:
            return Path(file).read_text().strip()
        except OSError:
            raise InputError(
                "The file with the webhook's address cannot be read.", where=f"{file} (${FILE_VARIABLE})"
            ) from None
    if name := os.environ.get(SECRET_VARIABLE):
        return read_secret(name).decode().strip()
    return ""
