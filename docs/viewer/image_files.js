// Image files in a bitstream: alpha and stored images, read by the browser. Gray images.

import { StreamError } from "./bitstream.js";

const startsWith = (file, text, at = 0) => [...text].every((letter, n) => file[at + n] === letter.charCodeAt());
const isPng = (file) => startsWith(file, "\x89PNG\r\n\x1a\n");

/** Return the pixels of an image file, RGBA. Throws what the browser throws, or StreamError if the size is another. */
async function filePixels(file, { width, height }) {
  if (isPng(file)) { // before anything is allocated
    const view = new DataView(file.buffer, file.byteOffset);
    if (view.getUint32(16) !== width || view.getUint32(20) !== height) throw new StreamError();
  }
  const bitmap = await createImageBitmap(new Blob([file]), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  if (bitmap.width !== width || bitmap.height !== height) throw new StreamError();
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

/** Return the pixels of a file that stores its image, RGBA. Throws StreamError. */
export async function storedPixels(parsed) {
  const [file] = parsed.strings;
  try {
    if (isPng(file) || (startsWith(file, "RIFF") && startsWith(file, "WEBP", 8))) return await filePixels(file, parsed);
  } catch {
    // as for files of other formats
  }
  throw new StreamError("corrupt bitstream: what it stores is not a PNG or WebP file of the image's size");
}

/** Return the alpha of a file that has a box of it: a Uint8ClampedArray, else undefined. Throws StreamError. */
export async function alphaOf(parsed) {
  const file = parsed.boxes.alpha;
  if (!file) return undefined;
  try {
    if (isPng(file) && file[24] === 8 && file[25] === 0) // 8 bits of gray
      return (await filePixels(file, parsed)).filter((_, n) => n % 4 === 0);
  } catch {
    // as for files of other formats
  }
  throw new StreamError("corrupt bitstream: its alpha is not a PNG file of the image's size");
}

/** Replace colors by their luma, as Pillow computes it. */
export function toGray(pixels) {
  for (let n = 0; n < pixels.length; n += 4)
    pixels.fill((19595 * pixels[n] + 38470 * pixels[n + 1] + 7471 * pixels[n + 2] + 0x8000) >> 16, n, n + 3);
}
