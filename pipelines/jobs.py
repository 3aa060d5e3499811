"""The jobs a person starts, in the order of the graph."""

import dagster as dg

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
midpoints = dg.define_asset_job(
    "midpoints", ["midpoint_study"], description="Which midpoint estimate is nearest to the truth, over t, on a trained model."
)
promote = dg.define_asset_job(
    "promote", ["registered_model", "champion"], description="Register the newest model; make it champion if it is not worse."
)
generate = dg.define_asset_job("generate", ["portraits"], description="Make portraits for queued requests.")

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
    midpoints,
    promote,
    generate,
]
