"""The last resort against a forgotten machine: takes the billing account away from the project.

Budgets send what has been spent to a topic, which pushes it here. At RATIO times the budget the project loses its
billing account, and everything that costs money stops. A person links the account again in the console.
"""

import base64
import json
import os

import google.auth
from google.auth.transport.requests import AuthorizedSession

BILLING = os.environ.get("BILLING_ENDPOINT", "https://cloudbilling.googleapis.com")


def is_over(content: bytes, ratio: float) -> bool:
    "Whether a budget's message says that too much was spent. Nonsense says nothing."
    try:
        told = json.loads(base64.b64decode(json.loads(content)["message"]["data"]))
        spent, budget = float(told["costAmount"]), float(told["budgetAmount"])
    except (ValueError, KeyError, TypeError):
        return False
    return budget > 0 and spent >= ratio * budget


def take_away(project: str) -> None:
    "Takes the billing account away from a project. Raises what the request raises, so that it is sent again."
    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-billing"])
    session = AuthorizedSession(credentials)
    answer = session.put(f"{BILLING}/v1/projects/{project}/billingInfo", json={"billingAccountName": ""}, timeout=30)
    answer.raise_for_status()


def hear_budget(request) -> tuple[str, int]:
    "What Cloud Functions calls with each message of the budget."
    if not is_over(request.get_data(), float(os.environ["RATIO"])):
        return "within the budget", 200
    take_away(os.environ["PROJECT"])
    return "the billing account is taken away", 200
