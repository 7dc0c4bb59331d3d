"""A mix as it comes from the street, against a running service; fails when it is too slow or answers wrongly.

card-classifier serve --database none &
make load HOST=http://127.0.0.1:8000
"""

import io
import os
import random

from locust import HttpUser, between, events, task
from PIL import Image, ImageDraw

P95_MILLISECONDS = float(os.environ.get("LOAD_P95_MILLISECONDS", "500"))
RANDOM = random.Random(1)


def picture(width: int, height: int) -> bytes:
    "A JPEG with something on it, no two alike."
    image = Image.new("RGB", (width, height), tuple(RANDOM.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        left, top = RANDOM.randrange(width), RANDOM.randrange(height)
        draw.ellipse(
            [left, top, left + RANDOM.randrange(5, width // 4), top + RANDOM.randrange(5, height // 4)],
            fill=tuple(RANDOM.randrange(256) for _ in range(3)),
        )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


SMALL, LARGE = [picture(224, 224) for _ in range(50)], [picture(4000, 3000) for _ in range(3)]


class Client(HttpUser):
    "Somebody who sends photos, mostly good ones."

    wait_time = between(0.0, 0.05)

    def send(self, name, expected, **request):
        "One request, whose status must be the expected one."
        with self.client.post("/v1/predict", name=name, catch_response=True, **request) as answer:
            if answer.status_code == expected:
                answer.success()
            else:
                answer.failure(f"{answer.status_code} instead of {expected}: {answer.text[:200]}")

    @task(80)
    def small(self):
        self.send("small image", 200, data=RANDOM.choice(SMALL))

    @task(8)
    def form(self):
        self.send(
            "form with four files", 200, files=[("files", (f"{place}.jpg", RANDOM.choice(SMALL))) for place in range(4)]
        )

    @task(3)
    def large(self):
        self.send("12-megapixel photo", 200, data=RANDOM.choice(LARGE))

    @task(3)
    def text(self):
        self.send("text", 415, data=b"this is not an image")

    @task(3)
    def half(self):
        self.send("half an image", 422, data=SMALL[0][: len(SMALL[0]) // 2])

    @task(3)
    def nothing(self):
        self.send("no body", 422, data=b"")


@events.quitting.add_listener
def judge(environment, **_):
    "The exit code says whether the service held its bounds."
    total = environment.stats.total
    p95 = total.get_response_time_percentile(0.95) or 0
    environment.process_exit_code = int(total.num_failures > 0 or p95 > P95_MILLISECONDS or not total.num_requests)
    print(
        f"{total.num_requests} requests, {total.num_failures} failures, {total.total_rps:.0f} a second, "
        f"95 % within {p95:.0f} ms (bound {P95_MILLISECONDS:.0f} ms)"
    )
