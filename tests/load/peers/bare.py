"A bare FastAPI route: uvicorn peers.bare:app --workers 2"

from typing import Annotated

from classify import Classifier
from fastapi import FastAPI, File

app, classifier = FastAPI(), Classifier()


@app.post("/predict")
def predict(request: Annotated[bytes, File()]) -> dict:
    "The best card."
    return classifier(request)
