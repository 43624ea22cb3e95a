import { createHash } from 'node:crypto';

/**
 * Bytes that anyone can make again from a seed: text that compresses, blocks that repeat, and
 * noise, in runs of 16 to 256 KiB, as real disks hold them.
 */
export function knownBytes(seed: number, sizeBytes: number): Buffer {
  const bytes = Buffer.alloc(sizeBytes);
  const next = numbers(seed);
  const repeated = Buffer.from(noise(next, 32 * 1024));
  for (let at = 0; at < sizeBytes;) {
    const length = Math.min(sizeBytes - at, 16 * 1024 * (1 + (next() % 16)));
    const kind = next() % 3;
    const run = kind === 0 ? text(next, length) : kind === 1 ? repeated : noise(next, length);
    for (let done = 0; done < length; done += run.length)
      bytes.set(run.subarray(0, Math.min(run.length, length - done)), at + done);
    at += length;
  }
  return bytes;
}

export function sha256Of(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** Mulberry32: small, fast, the same everywhere. */
function numbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
}

function noise(next: () => number, length: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(length / 4));
  for (let index = 0; index < words.length; index++) words[index] = next();
  return new Uint8Array(words.buffer, 0, length);
}

const words =
  'order invoice customer paid open total error login backup night server the of and'.split(' ');

function text(next: () => number, length: number): Uint8Array {
  const pieces: string[] = [];
  for (let size = 0; size < length; size += pieces.at(-1)?.length ?? 1)
    pieces.push(`${words[next() % words.length]} ${next() % 100_000}\n`);
  return Buffer.from(pieces.join('').slice(0, length));
}
