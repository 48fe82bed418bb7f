// The code that computes what the page shows: the layer and the function of a method, and the same region as a pattern.
// tests/site/test_explorer_code.py runs all of it.
(function (nk) {
  "use strict";

  const quoted = (text) => `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;

  // Layer and function of each method of the catalog. `a` has: channels, groups, positions (their sizes), pattern, F.
  const METHODS = {
    batch_norm: (a) => [`BatchNorm${nd(a)}d(${a.channels})`, `batch_norm(x, None, None, training=True)`],
    layer_norm: (a) =>
      a.pattern.startsWith("...")
        ? [`LayerNorm(${a.channels})`, `layer_norm(x, x.shape[-1:])`]
        : [`LayerNorm(${list([a.channels, ...a.positions])})`, `layer_norm(x, x.shape[1:])`],
    instance_norm: (a) => [`InstanceNorm${nd(a)}d(${a.channels})`, `instance_norm(x)`],
    group_norm: (a) => [`GroupNorm(${a.groups}, ${a.channels})`, `group_norm(x, ${a.groups})`],
    rms_norm: (a) => [`RMSNorm(${a.channels})`, `rms_norm(x, x.shape[-1:])`],
    layer_norm2d: (a) => [`LayerNorm2d(${a.channels})`, `layer_norm2d(x)`],
    local_response_norm: () => [`LocalResponseNorm(5)`, `local_response_norm(x, 5)`],
    filter_response_norm: (a) => [`FilterResponseNorm2d(${a.channels})`, `filter_response_norm(x)`],
    global_response_norm: (a) => [
      `GlobalResponseNorm(${a.channels})`,
      `global_response_norm(x, torch.ones(${a.channels}), torch.zeros(${a.channels}))`,
    ],
    scale_norm: (a) => [`ScaleNorm(${a.channels})`, `scale_norm(x)`],
    evo_norm_b0: (a) => [
      `EvoNorm2dB0(${a.channels})`,
      `evo_norm_b0(x, None, torch.ones(${a.channels}), training=True)`,
    ],
    evo_norm_s0: (a) => [
      `EvoNorm2dS0(${a.channels}, num_groups=${a.groups})`,
      `evo_norm_s0(x, ${a.groups}, torch.ones(${a.channels}))`,
    ],
    dynamic_tanh: (a) => [
      `DynamicTanh(${a.channels}, channels_last=False)`,
      `dynamic_tanh(x, torch.tensor([0.5]), channels_last=False)`,
    ],
    dynamic_erf: (a) => [
      `DynamicErf(${a.channels}, channels_last=False)`,
      `dynamic_erf(x, torch.tensor([0.5]), channels_last=False)`,
    ],
    switchable_norm: (a) => [
      `SwitchableNorm(${a.channels})`,
      `switchable_norm(x, None, None, torch.ones(3), torch.ones(3), training=True)`,
    ],
    power_norm: (a) => [
      `PowerNorm(${a.channels})`,
      `power_norm(x, torch.ones(${a.channels}), training=True, warmup=True)`,
    ],
    iter_norm: (a) => [
      `IterNorm(${a.channels}, num_groups=${a.groups})`,
      `iter_norm(x, None, None, training=True, num_groups=${a.groups})`,
    ],
    revin: (a) => [`RevIN(${a.channels})`, `revin(x)`],
  };
  // Applied to a layer; the function is the same.
  const OF_WEIGHTS = ["weight_norm", "weight_standardization", "spectral_norm"];

  const list = (sizes) => `[${sizes.join(", ")}]`;
  const nd = (a) => Math.max(1, a.positions.length);

  /** The example tensor, with the memory layout that was chosen. */
  function tensor(shape, strides) {
    const order = [...shape.keys()].sort((i, j) => strides[j] - strides[i]);
    const sizes = shape.join(", ");
    if (order.every((dim, place) => dim === place)) return `x = torch.randn(${sizes})`;
    const rotated = order.at(-1) === 1 && order.slice(1, -1).every((dim, place) => dim === place + 2);
    const format = { 4: "channels_last", 5: "channels_last_3d" }[shape.length];
    if (rotated && format) return `x = torch.randn(${sizes}).to(memory_format=torch.${format})`;
    const back = shape.map((_, dim) => order.indexOf(dim));
    return `x = torch.randn(${order.map((dim) => shape[dim]).join(", ")}).permute(${back.join(", ")})`;
  }

  /** Code for the region alone: [layer, function]. */
  function ofPattern(found) {
    const text = quoted(found.asked.text);
    const groups = found.takesGroups ? `, num_groups=${found.plan ? groupsOf(found) : 1}` : "";
    const features = found.features.length === 1 ? found.features[0] : list(found.features);
    const sizes = found.region.hasFeatures ? `num_features=${features}` : "affine=False";
    return [`Norm(${text}, ${sizes}${groups})`, `normalize(x, ${text}${groups})`];
  }

  const groupsOf = (found) => found.region.axes.find((axis) => axis.name === "g").size;

  /** What each of the two blocks of code has: the method's own line if it has one, and that of the pattern. */
  function code(found, method) {
    if (method && OF_WEIGHTS.includes(method.name)) {
      const lines = ["import torch, normkit", ""];
      const layer = [...lines, `layer = normkit.${method.name}(torch.nn.Conv2d(3, 8, 3))`, "y = layer(torch.randn(1, 3, 8, 8))"];
      return { layer: layer.join("\n"), function: null };
    }
    const start = ["import torch, normkit", "", found ? tensor(found.shape, found.strides) : "x = torch.randn(4, 6, 2, 3)"];
    const pattern = found ? ofPattern(found) : null;
    const own = method ? ownLines(found, method) : null;
    const block = (prefix, place, call) => {
      const lines = [...start];
      const one = own?.[place] ?? pattern?.[place];
      lines.push(...call(`normkit.${prefix}${one}`));
      if (own && pattern && isPlain(method)) lines.push("", "# the same, written as a region", ...call(`normkit.${prefix}${pattern[place]}`));
      return lines.join("\n");
    };
    const result = method?.name === "revin" ? "y, statistics" : method?.name === "evo_norm_b0" ? "y" : "y";
    return {
      layer: block("", 0, (one) => [`layer = ${one}`, `${result.replace("statistics", "_")} = layer(x)`]),
      function: block("functional.", 1, (one) => [`${result} = ${one}`]),
    };
  }

  /** Whether `Norm` with the pattern computes the same: standardization, with nothing else in the formula. */
  const isPlain = (method) => ["batch_norm", "layer_norm", "instance_norm", "group_norm", "layer_norm2d"].includes(method.name);

  function ownLines(found, method) {
    const shape = found?.shape ?? [4, 6, 2, 3];
    const images = { filter_response_norm: 4, evo_norm_b0: 4, evo_norm_s0: 4 };
    if (found && images[method.name] && shape.length !== images[method.name]) return null;
    if (found && ["batch_norm", "instance_norm"].includes(method.name) && found.positions.length > 3) return null;
    if (found && method.name === "instance_norm" && !found.positions.length) return null;
    const make = METHODS[method.name];
    if (!make) return null;
    return make({
      channels: found ? nk.product(found.features) : shape[1],
      positions: found ? found.positions : shape.slice(2),
      groups: found?.takesGroups ? groupsOf(found) : 1,
      pattern: found?.asked.text ?? "",
    });
  }

  nk.code = code;
})((globalThis.normkitExplorer ??= {}));
