import { crc32, deflateSync } from 'node:zlib';
import { RouseError } from '../../errors.ts';
import { libvirtLimits } from '../../limits.ts';

/**
 * `virsh screenshot` gives a portable pixmap (PPM, type P6, 8 bits) or, where QEMU writes it, PNG.
 * People's browsers want PNG (W3C PNG, third edition).
 */
export function pictureToPng(picture: Buffer): Buffer {
  if (picture.subarray(0, 8).equals(pngSignature)) return picture;
  const header = /^P6\s+(?:#[^\n]*\n\s*)*(\d+)\s+(\d+)\s+255\s/u.exec(
    picture.subarray(0, 256).toString('latin1'),
  );
  if (header === null) throw new RouseError('corrupt-data', 'the screen picture is no pixmap');
  const width = Number(header[1]);
  const height = Number(header[2]);
  const pixels = picture.subarray(header[0].length);
  if (width * height > libvirtLimits.screenPixelsMax || pixels.length < width * height * 3) {
    throw new RouseError('corrupt-data', `the screen picture of ${width}x${height} is cut short`);
  }
  return encodePng(width, height, pixels);
}

const pngSignature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);

function encodePng(width: number, height: number, pixels: Buffer): Buffer {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  // Section 11.2.2: 8 bits a sample, colour type 2 (RGB), deflate, adaptive filters, no interlace.
  header.set([8, 2, 0, 0, 0], 8);
  const rows = Buffer.alloc(height * (1 + width * 3));
  for (let row = 0; row < height; row += 1) {
    // Filter type 0 (none) stands before each row; screens of text deflate well without.
    pixels.copy(rows, row * (1 + width * 3) + 1, row * width * 3, (row + 1) * width * 3);
  }
  return Buffer.concat([
    pngSignature,
    chunk('IHDR', header),
    chunk('IDAT', deflateSync(rows)),
    chunk('IEND', Buffer.alloc(0)),
  ]);
}

/** Section 5.3: length, type, content, CRC-32 of type and content. */
function chunk(type: string, content: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(type, 'latin1'), content]);
  const framed = Buffer.alloc(body.length + 8);
  framed.writeUInt32BE(content.length, 0);
  body.copy(framed, 4);
  framed.writeUInt32BE(crc32(body), body.length + 4);
  return framed;
}
