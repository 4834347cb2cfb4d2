from pathlib import Path

import numpy as np
import tensorflow as tf

from tfalign.data import stain
from tfalign.jobs import evaluate

ROOT = Path(__file__).parent.parent


def test_the_saved_model_does_what_its_card_says():
    gray, truth = stain.held_out()
    served = tf.saved_model.load(str(ROOT / "saved_models/tissue_stain/1")).signatures["serving_default"]
    (prediction,) = served(tf.constant(gray)).values()
    metrics = evaluate.image_metrics(np.asarray(prediction)[0], truth[0])
    card = (ROOT / "saved_models/README.md").read_text()
    assert f"PSNR {metrics['psnr']:.2f} dB" in card
