"""Cut the training photos into tiles and let a stronger float EDSR add its outputs as second targets.

    python benchmarks/float_edsr/prepare_data.py --data ../shared/data --out float_edsr_data

Writes OUT/{HR,LR}/NAME.png: 240x240 HR tiles (128x128 for the small crops) with their x2 LR tiles, and for each a
second pair NAME_t.png whose HR side is the teacher's output. Training on both (see edsr_x2_f32b5.yml) is
distillation without any code in the training loop.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from srq_nni import compat

compat.prepare()
from basicsr.archs.edsr_arch import EDSR  # noqa: E402

TILE = 240


def load_teacher(path: Path) -> torch.nn.Module:
    """Return the float EDSR x2 (64 features, 8 blocks) that gives the second targets."""
    teacher = EDSR(3, 3, num_feat=64, num_block=8, upscale=2)
    teacher.load_state_dict(torch.load(path, weights_only=True)["params"])
    return teacher.eval()


@torch.inference_mode()
def upscale(teacher: torch.nn.Module, lr_bgr: np.ndarray) -> np.ndarray:
    """Return the teacher's output for one uint8 BGR image (H, W, 3) as uint8 BGR (2H, 2W, 3)."""
    x = torch.from_numpy(lr_bgr[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    y = teacher(x)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    return y[..., ::-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    teacher = load_teacher(args.data / "weights/EDSR_x2_f64b8.pth")
    for side in ("HR", "LR"):
        (args.out / side).mkdir(parents=True, exist_ok=True)
    sources = [
        (hr, args.data / f"train/{kind}_LR_bicubic/X2" / f"{hr.stem}x2.png")
        for kind in ("crops128", "photos480")
        for hr in sorted((args.data / f"train/{kind}_HR").glob("*.png"))
    ]
    for hr_path, lr_path in tqdm(sources):
        hr, lr = cv2.imread(str(hr_path)), cv2.imread(str(lr_path))
        pairs = {"": hr, "_t": upscale(teacher, lr)}
        for suffix, target in pairs.items():
            for top in range(0, hr.shape[0], TILE):
                for left in range(0, hr.shape[1], TILE):
                    name = f"{hr_path.stem}_{top}_{left}{suffix}.png"
                    cv2.imwrite(str(args.out / "HR" / name), target[top : top + TILE, left : left + TILE])
                    half = (slice(top // 2, (top + TILE) // 2), slice(left // 2, (left + TILE) // 2))
                    cv2.imwrite(str(args.out / "LR" / name), lr[half])


if __name__ == "__main__":
    main()
