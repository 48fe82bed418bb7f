// All texts of the page, in English and Chinese. "{name}" is replaced by a value.
(function (nk) {
  "use strict";

  const TEXTS = {
    title: ["Region explorer", "统计域浏览器"],
    method: ["Method", "方法"],
    own: ["your own pattern", "自定义模式串"],
    withRegion: ["With a region", "有统计域"],
    withoutRegion: ["Without a region", "没有统计域"],
    pattern: ["Pattern", "模式串"],
    patternHelp: [
      "Axes in [ ] share one mean and one variance; ( ) splits a dimension; ... is any number of dimensions.",
      "[ ] 中的轴共用一个均值和一个方差；( ) 把一个维度拆开；... 表示任意个维度。",
    ],
    regionsOf: ["Regions of this method", "该方法的统计域"],
    sameRegion: ["Methods with this region", "统计域相同的方法"],
    batch: ["Batch", "批大小"],
    channels: ["Channels", "通道数"],
    positions: ["Positions", "位置"],
    groups: ["Groups", "组数"],
    layout: ["Memory layout", "内存布局"],
    contiguous: ["contiguous", "contiguous"],
    channels_last: ["channels_last", "channels_last"],
    badSize: [
      "Write whole numbers from 1 to {most}, for instance {example}.",
      "请写 1 到 {most} 的整数，例如 {example}。",
    ],
    small: ["small", "小"],
    resnet: ["as in a ResNet", "如 ResNet"],
    sizes: ["Sizes", "尺寸"],
    cube: [
      "Cube of {n} samples, {c} channels and {p} positions, in {cells} cells of {count} elements. Arrow keys turn it, plus and minus pull the cells apart, Home puts it back.",
      "由 {n} 个样本、{c} 个通道、{p} 个位置组成的立方体，共 {cells} 个单元，每个 {count} 个元素。方向键转动，加减键拉开或合拢，Home 键复原。",
    ],
    cubeNone: [
      "Cube of batch, channels and positions; this method has no region.",
      "批、通道与位置组成的立方体；该方法没有统计域。",
    ],
    hint: ["Drag to turn, point at an element, click to keep it.", "拖动可转动；指向元素查看，单击保持选中。"],
    apart: ["Pull apart", "拉开"],
    reset: ["Reset view", "复原视角"],
    turnLeft: ["Turn left", "向左转"],
    turnRight: ["Turn right", "向右转"],
    drawn: ["The drawing shows {parts}.", "图中画出 {parts}。"],
    drawnSamples: ["{drawn} of {size} samples", "{size} 个样本中的 {drawn} 个"],
    drawnChannels: ["{drawn} of {size} channels", "{size} 个通道中的 {drawn} 个"],
    drawnPositions: ["{drawn} of {size} positions", "{size} 个位置中的 {drawn} 个"],
    comma: [", ", "、"],
    shareOne: ["elements share one mean and one variance", "个元素共用一个均值和一个方差"],
    shareStatistics: ["elements share their statistics", "个元素共用统计量"],
    shareSquare: ["elements share one mean square", "个元素共用一个均方值"],
    cells: ["Cells", "单元数"],
    shape: ["Shape", "形状"],
    weights: ["Weights", "权重数"],
    noWeights: ["none: no axis starts with c", "无：没有以 c 开头的轴"],
    statisticsPer: ["Statistics per", "统计粒度"],
    element: ["Element", "元素"],
    sample: ["sample", "样本"],
    channel: ["channel", "通道"],
    position: ["position", "位置"],
    of: ["{at} of {all}", "第 {at} 个，共 {all} 个"],
    status: [
      "Element {element} is in cell {cell} of {cells}; {count} elements share its statistics.",
      "元素 {element} 在第 {cell} 个单元（共 {cells} 个）；{count} 个元素共用其统计量。",
    ],
    statusNone: ["No element is selected.", "未选中元素。"],
    offset: ["memory offset {offset}, weight {weight}", "内存偏移 {offset}，权重下标 {weight}"],
    offsetOnly: ["memory offset {offset}", "内存偏移 {offset}"],
    clear: ["Show all cells", "显示全部单元"],
    planHeading: ["Plan: how a kernel reads it", "执行计划：内核如何读取"],
    kept: ["kept", "保留"],
    reduced: ["reduced", "归约"],
    unused: ["unused", "未用"],
    outer: ["outermost in memory", "内存最外层"],
    inner: ["innermost", "最内层"],
    rows: [
      "The kernel walks along rows: each {r1} neighbouring elements belong to one cell.",
      "内核沿行遍历：每 {r1} 个相邻元素属于同一个单元。",
    ],
    columns: [
      "The kernel walks down columns: it reads {width} neighbouring elements, {r0} times, and keeps sums for each of the {width} columns.",
      "内核沿列遍历：每次读取 {width} 个相邻元素，共 {r0} 次，并为 {width} 列分别累计。",
    ],
    columnsInBlocks: [
      "The kernel walks down columns inside each of {k0} blocks: it reads {width} neighbouring elements, {r0} times, and keeps sums for each of the {width} columns.",
      "内核在 {k0} 个块中分别沿列遍历：每次读取 {width} 个相邻元素，共 {r0} 次，并为 {width} 列分别累计。",
    ],
    copies: [
      "The tensor is copied first: its memory as it is does not fit four levels.",
      "先复制张量：现有的内存次序无法用四级视图表示。",
    ],
    weightIndex: [
      "The weight of the element at an offset has the index {index}.",
      "偏移 offset 处元素的权重下标为 {index}。",
    ],
    slabs: ["This repeats in each of {slabs} equal parts of the memory.", "内存等分为 {slabs} 段，每段各有自己的权重。"],
    memory: [
      "Memory in order, coloured as in the cube; the number is the index of the weight.",
      "按内存次序排列，颜色与立方体一致；数字为权重下标。",
    ],
    memoryNoWeights: ["Memory in order, coloured as in the cube.", "按内存次序排列，颜色与立方体一致。"],
    memoryPart: [
      "{rows} of {allRows} lines, {columns} of {allColumns} elements each.",
      "共 {allRows} 行、每行 {allColumns} 个元素；此处为 {rows} 行、每行 {columns} 个。",
    ],
    formulaHeading: ["Formula", "公式"],
    codeHeading: ["Code", "代码"],
    layerCode: ["Layer", "层"],
    functionCode: ["Function", "函数"],
    copy: ["Copy", "复制"],
    copied: ["Copied", "已复制"],
    copyLink: ["Copy link to this view", "复制当前视图的链接"],
    noRegion: [
      "{method} has no region: no elements share a mean and a variance.",
      "{method}没有统计域：没有元素共用均值和方差。",
    ],
    noPlan: ["This method has no region, so there is nothing to plan.", "该方法没有统计域，因此没有执行计划。"],
  };

  /** The text of that name in one language, with its values. */
  nk.text = function (lang, name, values = {}) {
    const text = TEXTS[name][lang === "zh" ? 1 : 0];
    return text.replace(/\{(\w+)\}/g, (_, key) => String(values[key]));
  };
  nk.TEXTS = TEXTS;
})((globalThis.normkitExplorer ??= {}));
