// An image as pixel values, step by step as preprocess.json says: convert, resize, crop, scale, normalise.
// Resizing is Pillow's: a filter as wide as the step between pixels, rows first, eight bits in between.

const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    const a = -0.5, t = Math.abs(x);
    if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
    return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
  }],
  nearest: null,
};

/** {data: Float32Array, shape} of an <img>, a canvas, a File, a Blob or ImageData. */
export async function pixels(source, recipe) {
  let image = planes(await imageData(source), recipe.channels);
  image = resized(image, recipe);
  if (recipe.crop) image = cropped(image, ...recipe.crop);
  const { planes: channels, width, height } = image;
  const order = recipe.flip_channels ? [...channels].reverse() : channels;
  const count = width * height, data = new Float32Array(count * order.length);
  order.forEach((plane, c) => {
    const source = recipe.flip_channels ? order.length - 1 - c : c; // mean and std are of the unflipped channels
    const mean = pick(recipe.mean, source, 0), std = pick(recipe.std, source, 1), scale = recipe.scale ?? 1;
    for (let i = 0; i < count; i++) data[recipe.channels_last ? i * order.length + c : c * count + i] = (plane[i] * scale - mean) / std;
  });
  return { data, shape: recipe.channels_last ? [1, height, width, order.length] : [1, order.length, height, width] };
}

const pick = (values, i, otherwise) => (values ? values[values.length === 1 ? 0 : i] : otherwise);

async function imageData(source) {
  if (source instanceof ImageData) return source;
  const bitmap = await createImageBitmap(source, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

function planes({ data, width, height }, channels) {
  const count = width * height;
  const make = (value) => Uint8ClampedArray.from({ length: count }, (_, i) => value(4 * i));
  if (channels === 1) {
    const grey = (i) => (data[i] * 19595 + data[i + 1] * 38470 + data[i + 2] * 7471 + 0x8000) >> 16;
    return { planes: [make(grey)], width, height };
  }
  return { planes: Array.from({ length: channels }, (_, c) => make((i) => data[i + c])), width, height };
}

function resized(image, recipe) {
  if (!recipe.resize) return image;
  let { kind, height, width } = recipe.resize;
  if (kind === "shortest") {
    const short = Math.min(image.width, image.height), edge = height;
    height = image.height === short ? edge : Math.trunc((edge * image.height) / short);
    width = image.width === short ? edge : Math.trunc((edge * image.width) / short);
  }
  const { planes: channels } = image;
  const along = weights(image.width, width, recipe.resample), down = weights(image.height, height, recipe.resample);
  return {
    width, height,
    planes: channels.map((plane) => columns(rows(plane, image.width, image.height, along), width, down)),
  };
}

/** For every new pixel: the first old one it reads, and how much of each. */
function weights(from, to, resample) {
  const scale = from / to;
  if (!FILTERS[resample]) return Array.from({ length: to }, (_, i) => [Math.min(from - 1, Math.floor((i + 0.5) * scale)), [1]]);
  const [reach, filter] = FILTERS[resample], wide = Math.max(scale, 1), support = reach * wide;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const parts = Array.from({ length: last - first }, (_, k) => filter((k + first - centre + 0.5) / wide));
    const sum = parts.reduce((a, b) => a + b, 0);
    return [first, parts.map((p) => p / sum)];
  });
}

const byte = (value) => Math.max(0, Math.min(255, Math.floor(value + 0.5)));

function rows(plane, width, height, along) {
  const result = new Uint8ClampedArray(along.length * height);
  for (let y = 0; y < height; y++) {
    along.forEach(([first, parts], x) => {
      let sum = 0;
      for (let k = 0; k < parts.length; k++) sum += parts[k] * plane[y * width + first + k];
      result[y * along.length + x] = byte(sum);
    });
  }
  return result;
}

function columns(plane, width, down) {
  const result = new Uint8ClampedArray(width * down.length);
  down.forEach(([first, parts], y) => {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let k = 0; k < parts.length; k++) sum += parts[k] * plane[(first + k) * width + x];
      result[y * width + x] = byte(sum);
    }
  });
  return result;
}

/** The centre, filled up with zeros where the image is smaller. */
function cropped({ planes: channels, width, height }, tall, wide) {
  const padTop = Math.ceil(Math.max(0, tall - height) / 2), padLeft = Math.ceil(Math.max(0, wide - width) / 2);
  const top = Math.floor(Math.max(0, height - tall) / 2), left = Math.floor(Math.max(0, width - wide) / 2);
  const planes = channels.map((plane) => {
    const result = new Uint8ClampedArray(tall * wide);
    for (let y = 0; y < tall; y++) {
      for (let x = 0; x < wide; x++) {
        const sy = y - padTop + top, sx = x - padLeft + left;
        if (sy >= 0 && sy < height && sx >= 0 && sx < width) result[y * wide + x] = plane[sy * width + sx];
      }
    }
    return result;
  });
  return { planes, width: wide, height: tall };
}
