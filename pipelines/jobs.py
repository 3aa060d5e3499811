"""The jobs a person starts, in the order of the graph."""

import dagster as dg

from assets.registry import ROLLBACK

scan = dg.define_asset_job("scan", ["source_images"], description="List a folder of photographs and deal it into shards.")
prepare = dg.define_asset_job(
    "prepare",
    ["aligned_faces", "face_masks", "identity_embeddings", "catalogue"],
    description="One shard: photographs to aligned faces, masks, embeddings and the catalogue.",
)
teach = dg.define_asset_job(
    "teach", ["expression_teacher"], description="One shard: what the expression encoder learns from besides labels."
)
experts = dg.define_asset_job(
    "experts", ["autoencoder", "dln_model", "loss_decoder"], description="The networks that training needs: imported, or trained here."
)
train_autoencoder = dg.define_asset_job("train_autoencoder", ["autoencoder"], description="The first of these alone.")
train_dln = dg.define_asset_job("train_dln", ["dln_model"], description="The second of these alone.")
train_decoder = dg.define_asset_job(
    "train_decoder", ["autoencoder", "loss_decoder"], description="The third, and the autoencoder whose latents it reads."
)
assess = dg.define_asset_job(
    "assess", ["expert_report"], description="How good the experts are on the faces prepared: identity, expression, masks, pose."
)
encode = dg.define_asset_job(
    "encode",
    ["expression_embeddings", "catalogue", "training_shards"],
    description="One shard: expression embeddings and everything a training step reads.",
)
train = dg.define_asset_job("train", ["emotion_index", "trained_model"], description="Train the model, or go on where it stopped.")
evaluate = dg.define_asset_job("evaluate", ["evaluation_report"], description="One task on one data set: measure a model.")
words = dg.define_asset_job("words", ["words_report"], description="One data set: what a model makes of words, named by a classifier.")
compare = dg.define_asset_job("compare", ["method_rows"], description="One task on one data set: measure another method on our items.")
ablations = dg.define_asset_job("ablations", ["ablation_table"], description="The trained ablations of a preset side by side.")
midpoints = dg.define_asset_job(
    "midpoints", ["midpoint_study"], description="Which midpoint estimate is nearest to the truth, over t, on a trained model."
)
_CHAMPION = dg.AssetSelection.assets("champion").without_checks()
promote = dg.define_asset_job(
    "promote",
    dg.AssetSelection.assets("registered_model") | _CHAMPION,
    description="Register the newest model, or put a version forward; make it champion if it passes the gates.",
)
rollback = dg.define_asset_job(
    ROLLBACK,
    _CHAMPION,
    description="Make the champion's predecessor the champion again.",
)
watch = dg.define_asset_job(
    "watch",
    dg.AssetSelection.checks(
        dg.AssetCheckKey(dg.AssetKey("champion"), "holds_what_it_promised"),
        dg.AssetCheckKey(dg.AssetKey("portraits"), "requests_like_training"),
    ),
    description="What is in service: the champion measured again on its pinned items, and requests against the training faces.",
)
generate = dg.define_asset_job(
    "generate", dg.AssetSelection.assets("portraits").without_checks(), description="Make portraits for queued requests."
)

ALL = [
    scan,
    prepare,
    teach,
    experts,
    train_autoencoder,
    train_dln,
    train_decoder,
    assess,
    encode,
    train,
    evaluate,
    words,
    compare,
    ablations,
    midpoints,
    promote,
    rollback,
    watch,
    generate,
]
