"""The paper's section 3: latents, schedule, tokens, UNet, sampling. See the shape legend in `diffsfsr`."""
