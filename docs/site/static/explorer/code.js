// The code that computes what the page shows: layer and function of a method, and the same region as a pattern.
// tests/site/test_explorer_code.py runs it.
(function (nk) {
  "use strict";

  const DEFAULT = "x = torch.randn(4, 6, 2, 3)";
  const quoted = (text) => `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
  const list = (sizes) => `[${sizes.join(", ")}]`;
  const ones = (a) => `torch.ones(${a.channels})`;

  // Layer and function of each method. `a` has: channels, groups, positions (their sizes), dims, last (whether channels
  // are the last dimension). Null where the method has none for a tensor of these dimensions.
  const METHODS = {
    batch_norm: (a) => [sized("BatchNorm", a), "batch_norm(x, None, None, training=True)"],
    layer_norm: (a) =>
      a.last
        ? [`LayerNorm(${a.channels})`, "layer_norm(x, x.shape[-1:])"]
        : [`LayerNorm(${list([a.channels, ...a.positions])})`, "layer_norm(x, x.shape[1:])"],
    instance_norm: (a) => (a.positions.length ? [sized("InstanceNorm", a), "instance_norm(x)"] : null),
    group_norm: (a) => [`GroupNorm(${a.groups}, ${a.channels})`, `group_norm(x, ${a.groups})`],
    rms_norm: (a) => [`RMSNorm(${a.channels})`, "rms_norm(x, x.shape[-1:])"],
    layer_norm2d: (a) => [`LayerNorm2d(${a.channels})`, "layer_norm2d(x)"],
    local_response_norm: () => ["LocalResponseNorm(5)", "local_response_norm(x, 5)"],
    filter_response_norm: (a) =>
      a.dims === 4 ? [`FilterResponseNorm2d(${a.channels})`, "filter_response_norm(x)"] : null,
    global_response_norm: (a) => [
      `GlobalResponseNorm(${a.channels})`,
      `global_response_norm(x, ${ones(a)}, torch.zeros(${a.channels}))`,
    ],
    scale_norm: (a) => [`ScaleNorm(${a.channels})`, "scale_norm(x)"],
    evo_norm_b0: (a) =>
      a.dims === 4 ? [`EvoNorm2dB0(${a.channels})`, `evo_norm_b0(x, None, ${ones(a)}, training=True)`] : null,
    evo_norm_s0: (a) =>
      a.dims === 4
        ? [`EvoNorm2dS0(${a.channels}, num_groups=${a.groups})`, `evo_norm_s0(x, ${a.groups}, ${ones(a)})`]
        : null,
    dynamic_tanh: (a) => [
      `DynamicTanh(${a.channels}, channels_last=False)`,
      "dynamic_tanh(x, torch.tensor([0.5]), channels_last=False)",
    ],
    dynamic_erf: (a) => [
      `DynamicErf(${a.channels}, channels_last=False)`,
      "dynamic_erf(x, torch.tensor([0.5]), channels_last=False)",
    ],
    switchable_norm: (a) =>
      a.positions.length
        ? [
            `SwitchableNorm(${a.channels})`,
            "switchable_norm(x, None, None, torch.ones(3), torch.ones(3), training=True)",
          ]
        : null,
    power_norm: (a) => [`PowerNorm(${a.channels})`, `power_norm(x, ${ones(a)}, training=True, warmup=True)`],
    iter_norm: (a) => [
      `IterNorm(${a.channels}, num_groups=${a.groups})`,
      `iter_norm(x, None, None, training=True, num_groups=${a.groups})`,
    ],
    revin: (a) => [`RevIN(${a.channels})`, "revin(x)"],
  };
  const ON_LAYERS = ["weight_norm", "weight_standardization", "spectral_norm"];
  // `Norm` with the pattern computes the same as these.
  const PLAIN = ["batch_norm", "layer_norm", "instance_norm", "group_norm", "layer_norm2d"];
  // These functions return their statistics as well.
  const TWO_RESULTS = ["revin"];

  function sized(name, a) {
    return a.positions.length > 3 ? null : `${name}${Math.max(1, a.positions.length)}d(${a.channels})`;
  }

  /** The example tensor in its memory layout. */
  function tensor({ shape, strides }) {
    const order = [...shape.keys()].sort((i, j) => strides[j] - strides[i]);
    const sizes = shape.join(", ");
    if (order.every((dim, place) => dim === place)) return `x = torch.randn(${sizes})`;
    const format = { "0,2,3,1": "channels_last", "0,2,3,4,1": "channels_last_3d" }[order];
    if (format) return `x = torch.randn(${sizes}).to(memory_format=torch.${format})`;
    const back = shape.map((_, dim) => order.indexOf(dim));
    return `x = torch.randn(${order.map((dim) => shape[dim]).join(", ")}).permute(${back.join(", ")})`;
  }

  const groupsOf = (found) => found.region.axes.find((axis) => axis.name === "g").size;

  /** Layer and function for the region alone. */
  function ofPattern(found) {
    const text = quoted(found.asked.text);
    const groups = found.takesGroups ? `, num_groups=${groupsOf(found)}` : "";
    const features = found.features.length === 1 ? found.features[0] : list(found.features);
    const sizes = found.region.hasFeatures ? `num_features=${features}` : "affine=False";
    return [`Norm(${text}, ${sizes}${groups})`, `normalize(x, ${text}${groups})`];
  }

  /** Layer and function of the method, each null if it has none for this tensor. */
  function ofMethod(found, method) {
    const make = METHODS[method.name];
    if (!make) return [null, null];
    const taken = found ?? { shape: [4, 6, 2, 3], features: [6], positions: [2, 3] };
    const made = make({
      channels: nk.product(taken.features),
      groups: found?.takesGroups ? groupsOf(found) : 1,
      positions: taken.positions,
      dims: taken.shape.length,
      last: found?.asked.text.startsWith(nk.ELLIPSIS),
    });
    return made ?? [null, null];
  }

  /** The text of both blocks of code: `found` is null for a method without a region, `method` for a pattern alone. */
  nk.code = function (found, method) {
    if (method && ON_LAYERS.includes(method.name)) {
      const call = `layer = normkit.${method.name}(torch.nn.Conv2d(3, 8, 3))`;
      return { layer: ["import torch, normkit", "", call, "y = layer(torch.randn(1, 3, 8, 8))"].join("\n"), function: null };
    }
    const own = method ? ofMethod(found, method) : [null, null];
    const pattern = found ? ofPattern(found) : [null, null];
    const same = method && PLAIN.includes(method.name);
    const results = own[1] && TWO_RESULTS.includes(method.name) ? "y, statistics" : "y";
    const block = (place, lines) => {
      const first = own[place] ?? pattern[place];
      const more = own[place] && same ? ["", "# the same, written as a region", ...lines(pattern[place])] : [];
      return ["import torch, normkit", "", found ? tensor(found) : DEFAULT, ...lines(first), ...more].join("\n");
    };
    return {
      layer: block(0, (call) => [`layer = normkit.${call}`, "y = layer(x)"]),
      function: block(1, (call) => [`${results} = normkit.functional.${call}`]),
    };
  };
})((globalThis.normkitExplorer ??= {}));
