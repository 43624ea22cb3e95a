/**
 * What a write layer has to remember beside its log: the write verifier, the boot it served in,
 * and whether it ever answered a write that was not synced yet ("dirty"). One small file with two
 * self-checking slots, written in turn: a torn write leaves the other.
 *
 * The rule of the verifier: it changes if and only if acknowledged bytes that were not synced may
 * be lost. That is so when a sync failed, and when the machine went down (another boot id) while
 * the layer was dirty. The death of the process alone loses nothing.
 */
import { crc32 } from 'node:zlib';
import { RouseError } from '../errors.ts';
import type { Files, OpenFile } from '../lib/files.ts';
import type { Random } from '../lib/random.ts';

const magic = 0x54535752; // 'RWST'
const version = 1;
const slotBytes = 4096;
const usedBytes = 128;

interface Values {
  readonly counter: number;
  readonly verifier: bigint;
  /** At most 64 bytes. */
  readonly bootId: string;
  readonly dirty: boolean;
}

export class LayerState {
  readonly #file: OpenFile;
  readonly #random: Random;
  #values: Values;
  /** Values that no write has confirmed yet. */
  #unsaved = false;
  #writing: Promise<void> = Promise.resolve();

  private constructor(file: OpenFile, random: Random, values: Values) {
    this.#file = file;
    this.#random = random;
    this.#values = values;
  }

  /** Durable once the directory is synced. */
  static async create(files: Files, path: string, random: Random, bootId: string): Promise<void> {
    const file = await files.open(path, 'write');
    const verifier = random.bytes(8).readBigUInt64LE();
    const state = new LayerState(file, random, { counter: 0, verifier, bootId, dirty: false });
    await state.#save(state.#values);
    await file.close();
  }

  /** `sameBoot`: what the last process handed over may still be in the kernel's memory only. */
  static async open(
    files: Files,
    path: string,
    random: Random,
    bootId: string,
  ): Promise<{ readonly state: LayerState; readonly sameBoot: boolean }> {
    const file = await files.open(path, 'write');
    const found = await newest(file, path);
    const lost = found === undefined || (found.dirty && found.bootId !== bootId);
    const values = {
      counter: found?.counter ?? 0,
      verifier: lost ? freshVerifier(random, found?.verifier) : found.verifier,
      bootId,
      dirty: lost ? false : found.dirty,
    };
    const state = new LayerState(file, random, values);
    // Always: what was read may be in the kernel's memory only, from a process that was killed.
    await state.#save(values);
    return { state, sameBoot: found === undefined || found.bootId === bootId };
  }

  get verifier(): bigint {
    return this.#values.verifier;
  }

  get dirty(): boolean {
    return this.#values.dirty;
  }

  /** A changed verifier is not on the disk yet: nothing may be called durable. */
  get unsaved(): boolean {
    return this.#unsaved;
  }

  /** Resolves once it is durable that unsynced writes may have been answered. */
  async markDirty(): Promise<void> {
    await this.#exclusive(async () => {
      if (!this.#values.dirty) await this.#save({ ...this.#values, dirty: true });
    });
  }

  /** `still` is asked right before: are all answered writes synced? */
  async markClean(still: () => boolean): Promise<void> {
    await this.#exclusive(async () => {
      if (!this.#values.dirty || !still()) return;
      // From here on a write must wait for the next `markDirty`, whether or not this reaches disk.
      const clean = { ...this.#values, dirty: false };
      this.#values = clean;
      await this.#save(clean);
    });
  }

  /** Takes effect at once; `save` makes it durable. */
  changeVerifier(): void {
    this.#values = {
      ...this.#values,
      verifier: freshVerifier(this.#random, this.#values.verifier),
    };
    this.#unsaved = true;
  }

  async save(): Promise<void> {
    await this.#exclusive(async () => {
      if (this.#unsaved) await this.#save(this.#values);
    });
  }

  async close(): Promise<void> {
    await this.#writing.catch(() => undefined);
    await this.#file.close();
  }

  #exclusive(work: () => Promise<void>): Promise<void> {
    const done = this.#writing.then(work, work);
    this.#writing = done;
    done.catch(() => undefined);
    return done;
  }

  async #save(values: Values): Promise<void> {
    const next = { ...values, counter: this.#values.counter + 1 };
    const position = (next.counter % 2) * slotBytes;
    await this.#file.write([encode(next)], position);
    await this.#file.sync();
    // The verifier may have changed while this was written.
    const newer = this.#values.verifier !== values.verifier;
    this.#values = { ...next, verifier: this.#values.verifier };
    this.#unsaved = newer;
  }
}

/** Different from the last one, and never 0, which some clients take for "none". */
function freshVerifier(random: Random, last: bigint | undefined): bigint {
  for (;;) {
    const verifier = random.bytes(8).readBigUInt64LE();
    if (verifier !== last && verifier !== 0n) return verifier;
  }
}

async function newest(file: OpenFile, path: string): Promise<Values | undefined> {
  let best: Values | undefined;
  for (let slot = 0; slot < 2; slot++) {
    const bytes = Buffer.alloc(usedBytes);
    if ((await file.read(bytes, slot * slotBytes)) < usedBytes) continue;
    const values = decode(bytes, path);
    if (values !== undefined && values.counter >= (best?.counter ?? 0)) best = values;
  }
  return best;
}

function encode(values: Values): Buffer {
  const bytes = Buffer.alloc(usedBytes);
  bytes.writeUInt32LE(magic, 0);
  bytes.writeUInt32LE(version, 8);
  bytes.writeUInt32LE(values.dirty ? 1 : 0, 12);
  bytes.writeBigUInt64LE(BigInt(values.counter), 16);
  bytes.writeBigUInt64LE(values.verifier, 24);
  bytes.writeUInt8(Math.min(64, Buffer.byteLength(values.bootId)), 32);
  bytes.write(values.bootId, 33, 64);
  bytes.writeUInt32LE(crc32(bytes.subarray(8)), 4);
  return bytes;
}

function decode(bytes: Buffer, path: string): Values | undefined {
  if (bytes.readUInt32LE(0) !== magic) return undefined;
  if (bytes.readUInt32LE(4) !== crc32(bytes.subarray(8))) return undefined;
  if (bytes.readUInt32LE(8) !== version) {
    throw new RouseError('newer-format', `${path} was written by a newer Rouse`);
  }
  return {
    dirty: bytes.readUInt32LE(12) === 1,
    counter: Number(bytes.readBigUInt64LE(16)),
    verifier: bytes.readBigUInt64LE(24),
    bootId: bytes.toString('utf8', 33, 33 + Math.min(64, bytes.readUInt8(32))),
  };
}
