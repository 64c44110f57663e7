"""Sixty mistakes that one could make: one change each, in one place.

Some are slips of the pen, a sign or a unit; most were chosen because a wrong
network still trains with them, and only its numbers are off.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
  """`old`, which stands once in rad_jax/<path>, becomes `new`."""

  path: str
  old: str
  new: str


MUTANTS = {
  # A sign, a factor or a unit of the process and its predictions.
  "v_sign": Mutant(
    "diffusion/parametrisation.py",
    "return -level.sigma / scale, level.alpha / scale",
    "return level.sigma / scale, level.alpha / scale",
  ),
  "edm_output_sign": Mutant(
    "diffusion/parametrisation.py",
    "(sigma_data * root), -sigma_data / root",
    "(sigma_data * root), sigma_data / root",
  ),
  "own_weight_in_state_units": Mutant(
    "diffusion/parametrisation.py",
    "_determinant(prediction, level) / level.alpha)",
    "_determinant(prediction, level))",
  ),
  "min_snr_is_max_snr": Mutant(
    "diffusion/parametrisation.py", "jnp.minimum(1, 5 *", "jnp.maximum(1, 5 *"
  ),
  "shift_by_w_not_sigma_w": Mutant(
    "diffusion/process.py",
    "return x_t + (per_example(sigma, w.ndim) if sigma.ndim else sigma) * w",
    "return x_t + w",
  ),
  "posterior_variance_of_forward": Mutant(
    "diffusion/process.py", "added * var_s / var_t, added", "added, added"
  ),
  "linear_schedule_not_scaled": Mutant(
    "diffusion/schedules.py",
    "0.02 * scale, num_timesteps",
    "0.02, num_timesteps",
  ),
  "grid_ends_at_timestep_1": Mutant(
    "diffusion/schedules.py",
    "np.linspace(num_timesteps - 1, 0, num_steps)",
    "np.linspace(num_timesteps - 1, 1, num_steps)",
  ),
  "timestep_0_never_trained": Mutant(
    "diffusion/schedules.py",
    "jax.random.randint(key, (), 0, len(alpha_bar))",
    "jax.random.randint(key, (), 1, len(alpha_bar))",
  ),
  "flow_time_reaches_its_ends": Mutant(
    "diffusion/schedules.py",
    "return level(end + (1 - 2 * end) * t, jnp)",
    "return level(t, jnp)",
  ),
  "stop_sigma_in_state_units": Mutant(
    "diffusion/schedules.py",
    "np.asarray(levels.sigma / levels.alpha) >= sigma",
    "np.asarray(levels.sigma) >= sigma",
  ),
  # Samplers.
  "ddim_adds_noise_it_did_not_take": Mutant(
    "diffusion/samplers.py",
    "jnp.square(step.s.sigma) - var",
    "jnp.square(step.s.sigma)",
  ),
  "heun_is_backward_euler": Mutant(
    "diffusion/samplers.py", "(x_0_t + x_0_s) / 2", "x_0_s"
  ),
  "dpm_solver_extrapolates_twice": Mutant(
    "diffusion/samplers.py",
    "h / (2 * jnp.where(first, 1.0, h_before))",
    "h / jnp.where(first, 1.0, h_before)",
  ),
  "sampler_noise_reused_by_steps": Mutant(
    "diffusion/samplers.py",
    "jax.random.normal(jax.random.fold_in(key, step), shape)",
    "jax.random.normal(jax.random.fold_in(key, 0 * step), shape)",
  ),
  "clipped_estimate_with_old_noise": Mutant(
    "diffusion/samplers.py",
    "return x_0_hat, process.x_0_to_eps(level, x_t, x_0_hat)",
    "return x_0_hat, eps_hat",
  ),
  "w_one_level_late": Mutant(
    "diffusion/samplers.py", "else w[:-1])", "else w[1:])"
  ),
  # The paper's objective, and what stands round it.
  "equivariance_sign": Mutant(
    "robustness/objectives.py", "return eps_hat + w", "return eps_hat - w"
  ),
  "target_always_stopped": Mutant(
    "robustness/objectives.py", "if stop_gradient:", "if True:"
  ),
  "lambda_forgotten": Mutant(
    "robustness/objectives.py",
    'terms["dsm"] + lambda_t * terms["regulariser"]',
    'terms["dsm"] + terms["regulariser"]',
  ),
  "attack_raises_the_residual": Mutant(
    "robustness/objectives.py",
    '"J": lambda objective: invariant',
    '"J": lambda objective: objective.target or invariant',
  ),
  "aware_target_not_corrected": Mutant(
    "robustness/noising.py", "eps=z / root", "eps=z"
  ),
  "aware_weight_kappa": Mutant(
    "robustness/noising.py", "jnp.square(kappa), 0.0)", "kappa, 0.0)"
  ),
  "linf_not_projected": Mutant(
    "robustness/attacks.py", "return jnp.clip(w, -r, r)", "return w"
  ),
  "l2_projected_to_the_border": Mutant(
    "robustness/attacks.py", "jnp.where(norm > radius,", "jnp.where(norm > 0,"
  ),
  "l2_uniform_in_radius": Mutant(
    "robustness/attacks.py",
    "jax.vmap(jax.random.uniform)(keys[:, 1]) ** (1 / d)",
    "jax.vmap(jax.random.uniform)(keys[:, 1])",
  ),
  "gradient_through_the_attack": Mutant(
    "robustness/attacks.py",
    "slope = jax.lax.stop_gradient(gradient(w))",
    "slope = gradient(w)",
  ),
  "radius_by_edm_sigma": Mutant(
    "robustness/method.py",
    "method.radius(processes.unit_sigma(level))",
    "method.radius(level.sigma)",
  ),
  "warmup_ignored": Mutant(
    "robustness/method.py",
    "ramp * method.lambda_t(radius)",
    "method.lambda_t(radius)",
  ),
  "one_key_for_the_batch": Mutant(
    "robustness/method.py",
    "jax.random.fold_in(key, i))(jnp.arange(batch_size))",
    "jax.random.fold_in(key, 0 * i))(jnp.arange(batch_size))",
  ),
  "state_units_inverted": Mutant(
    "robustness/radius.py", "return r / sigma_t if", "return r * sigma_t if"
  ),
  "warmup_starts_at_0": Mutant(
    "robustness/radius.py", "(step - first_step + 1)", "(step - first_step)"
  ),
  "shrinkage_of_std": Mutant(
    "robustness/shrinkage.py", "np.square(rho))", "np.asarray(rho))"
  ),
  "eot_draws_not_renewed": Mutant(
    "robustness/purification.py",
    "gradient = attacks.mean_gradient(loss, _draws(keys, i, num_draws))",
    "gradient = attacks.mean_gradient(loss, _draws(keys, 1, num_draws))",
  ),
  "same_w_at_every_level": Mutant(
    "robustness/trajectory.py",
    "jax.vmap(lambda n: _fold_in(keys, n))",
    "jax.vmap(lambda n: _fold_in(keys, 0 * n))",
  ),
  # The step, the optimiser, and what is kept.
  "ema_of_old_parameters": Mutant(
    "training/step.py",
    "params, state.ema_params, 1 - ema_decay_at",
    "state.params, state.ema_params, 1 - ema_decay_at",
  ),
  "ema_without_its_youth": Mutant(
    "training/step.py", "/ (10 + update)", "/ (1 + update)"
  ),
  "skips_by_the_loss_alone": Mutant(
    "training/step.py",
    'jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])',
    "jnp.isfinite(loss)",
  ),
  "micro_batches_sum": Mutant(
    "training/step.py", "jax.tree.map(lambda x: x / count, total)", "total"
  ),
  "mean_over_the_regularised": Mutant(
    "training/step.py",
    "total, count = total + jnp.sum(values), count + len(values)",
    "total = total + jnp.sum(values)",
  ),
  "noise_reused_by_steps": Mutant(
    "training/step.py",
    "jax.random.fold_in(state.key, state.step)\n",
    "jax.random.fold_in(state.key, 0 * state.step)\n",
  ),
  "decay_counts_the_warmup": Mutant(
    "training/optimizers.py",
    "after = max(num_steps - warmup_steps, 1)",
    "after = num_steps",
  ),
  "clips_the_update": Mutant(
    "training/optimizers.py",
    "optax.chain(clip, optax.adam(schedule, b1=b1, b2=b2))",
    "optax.chain(optax.adam(schedule, b1=b1, b2=b2), clip)",
  ),
  "regulariser_a_step_late": Mutant(
    "training/passes.py", "return since >= 0 and", "return since > 0 and"
  ),
  "replays_descend": Mutant(
    "training/replays.py",
    "attacks.step(attack, w, by_w, radius)",
    "attacks.step(attack, w, -by_w, radius)",
  ),
  "restores_the_oldest": Mutant(
    "training/checkpoints.py",
    "sorted(manager.all_steps(), reverse=True)",
    "sorted(manager.all_steps())",
  ),
  # Measures.
  "covariance_ddof_0": Mutant(
    "evaluation/measures.py",
    "np.cov(x, rowvar=False)",
    "np.cov(x, rowvar=False, ddof=0)",
  ),
  "support_rms_of_elements": Mutant(
    "evaluation/measures.py",
    "np.mean(np.sum(np.square(offset), axis=1))",
    "np.mean(np.mean(np.square(offset), axis=1))",
  ),
  "kid_biased": Mutant(
    "evaluation/feature_measures.py",
    "(gram.sum() - np.trace(gram)) / (len(a) * (len(a) - 1))",
    "gram.mean()",
  ),
  "one_neighbour_too_near": Mutant(
    "evaluation/feature_measures.py",
    "np.partition(d, k, axis=1)[:, k]",
    "np.partition(d, k - 1, axis=1)[:, k - 1]",
  ),
  "lipschitz_without_transpose": Mutant(
    "evaluation/diagnose.py",
    "_unit(backward(forward(v))[0])",
    "_unit(forward(v))",
  ),
  "samples_of_another_checkpoint": Mutant(
    "evaluation/sampling.py",
    'files.digest([model.digest, run.config["seed"], settings])',
    'files.digest([run.config["seed"], settings])',
  ),
  "score_without_alpha": Mutant(
    "evaluation/protocols/levels.py",
    "exact = (flat - alpha * x_0_hat) / sigma",
    "exact = (flat - x_0_hat) / sigma",
  ),
  "transfer_measured_on_the_surrogate": Mutant(
    "evaluation/protocols/attack.py",
    "return samplers.reverse(*chain, w=w)",
    "return samplers.reverse(*victim, w=w)",
  ),
  # Data.
  "corruption_by_place_in_the_batch": Mutant(
    "data/corruptions.py",
    "jax.vmap(apply)(_keys(key, index)[:, 1], x_0)",
    "jax.vmap(apply)(_keys(key, jnp.arange(len(index)))[:, 1], x_0)",
  ),
  "flag_and_noise_of_one_key": Mutant(
    "data/corruptions.py",
    "jax.vmap(jax.random.uniform)(_keys(key, index)[:, 0])",
    "jax.vmap(jax.random.uniform)(_keys(key, index)[:, 1])",
  ),
  "flips_upside_down": Mutant(
    "data/examples.py", "x[:, :, ::-1]", "x[:, ::-1]"
  ),
  "known_noise_of_any_kind": Mutant(
    "data/prepare.py",
    'if fraction == 0 or kind != "gaussian":',
    "if fraction == 0:",
  ),
  "every_epoch_in_one_order": Mutant(
    "data/batches.py",
    "np.random.default_rng([seed, epoch])",
    "np.random.default_rng([seed, 0 * epoch])",
  ),
  "crop_not_centred": Mutant(
    "data/images.py",
    "return (width - side) // 2, (height - side) // 2, side",
    "return 0, (height - side) // 2, side",
  ),
  # Baselines, attacks' aims, and how methods are compared.
  "bounded_without_its_scale": Mutant(
    "robustness/objectives.py",
    "return -jnp.expm1(-influence * error) / influence",
    "return -jnp.expm1(-influence * error)",
  ),
  "jacobian_in_state_units": Mutant(
    "robustness/objectives.py",
    "step = shifted(jnp.zeros_like(w), noised.sigma, w)",
    "step = w",
  ),
  "temperature_ignored": Mutant(
    "diffusion/samplers.py", "temperature * z", "z"
  ),
  "transport_about_the_other_mean": Mutant(
    "evaluation/measures.py",
    "return mean + (x - own_mean) @ root",
    "return mean + (x - mean) @ root",
  ),
  "saturation_of_the_samples_alone": Mutant(
    "evaluation/collapse.py", "saturated[0] - saturated[1]", "saturated[0]"
  ),
  "holm_may_fall": Mutant(
    "reports/paired.py", "np.maximum.accumulate(steps)", "steps"
  ),
  "knobs_of_the_worst": Mutant(
    "experiments/compare.py",
    "key: min(settings, key=lambda",
    "key: max(settings, key=lambda",
  ),
  "kept_set_unchecked": Mutant(
    "data/decoded.py", "and _about(images) == about", "and about"
  ),
}
