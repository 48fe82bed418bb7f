// One colour for each cell. Hues tell kept channels (or positions) apart, lightness tells samples apart.
(function (nk) {
  "use strict";

  /** OKLCH to sRGB, each from 0 to 1. Formulas: Björn Ottosson, "A perceptual color space for image processing", 2020. */
  function fromOklch(l, c, degrees) {
    const hue = (degrees * Math.PI) / 180;
    const a = c * Math.cos(hue);
    const b = c * Math.sin(hue);
    const long = (l + 0.3963377774 * a + 0.2158037573 * b) ** 3;
    const medium = (l - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const short = (l - 0.0894841775 * a - 1.291485548 * b) ** 3;
    return [
      4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
      -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
      -0.0041960863 * long - 0.7034186147 * medium + 1.707614701 * short,
    ].map(gamma);
  }

  function gamma(value) {
    const clipped = Math.min(1, Math.max(0, value));
    return clipped <= 0.0031308 ? 12.92 * clipped : 1.055 * clipped ** (1 / 2.4) - 0.055;
  }

  /** The kept part of an index along one side of the cube, and how many such parts there are. */
  function keptOf(found, index, side) {
    let number = 0;
    let all = 1;
    for (const i of found.sides[side].own) {
      if (found.levels[i].reduced) continue;
      number = number * found.levels[i].size + index[i];
      all *= found.levels[i].size;
    }
    return [number, all];
  }

  /** Lightness, chroma and hue of the cell that holds an element. */
  nk.colourOf = function (found, index) {
    const [sample, samples] = keptOf(found, index, "samples");
    const [channel, channels] = keptOf(found, index, "channels");
    const [position, positions] = keptOf(found, index, "positions");
    // The side with most kept indices takes the hue; a side alone needs no second property.
    const [first, firsts] = channels > 1 ? [channel, channels] : positions > 1 ? [position, positions] : [sample, samples];
    const step = Math.min(firsts, 12);
    let hue = 250 + (360 * (first % step)) / step;
    let lightness = 0.7 + (first % 2 ? 0.035 : -0.035);
    let chroma = 0.135;
    if (samples > 1 && (channels > 1 || positions > 1)) {
      lightness = 0.82 - 0.4 * (Math.min(sample, 7) / Math.max(3, Math.min(samples - 1, 7)));
    }
    if (positions > 1 && channels > 1) {
      chroma = 0.15 - 0.1 * ((position % 8) / Math.min(8, positions));
      hue += 6 * (position % 4);
    }
    return [lightness, chroma, hue];
  };

  nk.fromOklch = fromOklch;
})((globalThis.normkitExplorer ??= {}));
