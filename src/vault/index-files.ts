import { join } from 'node:path';
import { Blake3Hasher } from '@napi-rs/blake-hash';
import { isRouseError } from '../errors.ts';
import type { Files, OpenFile } from '../lib/files.ts';
import { indexEntryBytes, type BlockIndex } from './block-index.ts';

/**
 * The index on disk: a cache of the packs' tables, thrown away whenever it looks wrong. It is a
 * sequence of *runs*, `run-<number>.index`, each a list of packs and the entries that lie in them.
 * A run may replace all runs up to a number: then it holds everything, in order of ids.
 *
 *   header   64: "RouseIdx", u32 version, u32 packs, u64 entries, u64 replaces runs up to,
 *                16 bytes of the vault's id, 16 zeros
 *   packs    40 each: the 32 bytes of its name, u64 its size
 *   entries  20 each: five u32 (block-index.ts); the pack's number is its place in this run
 *   footer   32: keyed BLAKE3 of all before it
 */
const mark = Buffer.from('RouseIdx');
const version = 1;
const headerBytes = 64;
const packBytes = 40;
const footerBytes = 32;
const pieceEntries = 65_536;

export interface KnownPack {
  readonly name: string;
  readonly sizeBytes: number;
}

/** Numbers packs for the index as they become known. */
export interface PackNumbers {
  numberOf(pack: KnownPack): number;
}

export class IndexFiles {
  readonly #files: Files;
  readonly #directory: string;
  readonly #vaultId: Buffer;
  readonly #key: Buffer;
  #next = 1;
  #entriesInDeltas = 0;
  #deltas = 0;
  #baseEntries = 0;
  /** Runs whose checksum was found right in this loading. */
  readonly #whole = new Set<number>();

  constructor(files: Files, directory: string, vaultId: Buffer, key: Buffer) {
    this.#files = files;
    this.#directory = directory;
    this.#vaultId = vaultId;
    this.#key = key;
  }

  /** Fills an empty index with what the good runs say; bad ones are removed. */
  async load(index: BlockIndex, packs: PackNumbers): Promise<void> {
    const numbers = await this.#runs();
    const replaced = await this.#replacedUpTo(numbers);
    for (const number of numbers) {
      this.#next = Math.max(this.#next, number + 1);
      if (number <= replaced) await this.#remove(number);
      else if (!(await this.#loadRun(number, index, packs))) await this.#remove(number);
    }
  }

  async #runs(): Promise<number[]> {
    const names = await this.#files.list(this.#directory);
    for (const name of names)
      if (name.endsWith('.new')) await this.#files.remove(join(this.#directory, name));
    return names
      .flatMap((name) => /^run-(\d{1,15})\.index$/.exec(name)?.[1] ?? [])
      .map(Number)
      .sort((a, b) => a - b);
  }

  /** A run counts only when it is whole, so a half-written base replaces nothing. */
  async #replacedUpTo(numbers: readonly number[]): Promise<number> {
    for (const number of numbers.toReversed()) {
      const upTo = await this.#reading(number, (file) => replacesUpTo(file));
      if (upTo === undefined || upTo === 0) continue;
      if ((await this.#reading(number, this.#isWhole)) === true) {
        this.#whole.add(number);
        return upTo;
      }
    }
    return 0;
  }

  async #reading<T>(number: number, work: (file: OpenFile) => Promise<T>): Promise<T | undefined> {
    let file: OpenFile;
    try {
      file = await this.#files.open(this.#path(number), 'read');
    } catch (error) {
      if (isRouseError(error, 'not-found')) return undefined;
      throw error;
    }
    try {
      return await work(file);
    } finally {
      await file.close();
    }
  }

  readonly #isWhole = async (file: OpenFile): Promise<boolean> => {
    const size = await file.size();
    if (size < headerBytes + footerBytes) return false;
    const hasher = Blake3Hasher.newKeyed(this.#key);
    const piece = Buffer.allocUnsafe(Math.min(size, 1024 * 1024));
    for (let at = 0; at < size - footerBytes; at += piece.length) {
      const part = piece.subarray(0, Math.min(piece.length, size - footerBytes - at));
      if ((await file.read(part, at)) !== part.length) return false;
      hasher.update(part);
    }
    const footer = Buffer.alloc(footerBytes);
    await file.read(footer, size - footerBytes);
    return hasher.digestBuffer().equals(footer);
  };

  async #loadRun(number: number, index: BlockIndex, packs: PackNumbers): Promise<boolean> {
    const loaded = await this.#reading(number, async (file) => {
      if (!this.#whole.has(number) && !(await this.#isWhole(file))) return false;
      const header = Buffer.alloc(headerBytes);
      await file.read(header, 0);
      const packCount = header.readUInt32LE(12);
      const entries = Number(header.readBigUInt64LE(16));
      const expected =
        headerBytes + packCount * packBytes + entries * indexEntryBytes + footerBytes;
      if (
        !header.subarray(0, 8).equals(mark) ||
        header.readUInt32LE(8) !== version ||
        !header.subarray(32, 48).equals(this.#vaultId.subarray(0, 16)) ||
        expected !== (await file.size())
      )
        return false;
      const table = Buffer.allocUnsafe(packCount * packBytes);
      await file.read(table, headerBytes);
      const numbers = Uint32Array.from({ length: packCount }, (_, i) =>
        packs.numberOf({
          name: table.toString('hex', i * packBytes, i * packBytes + 32),
          sizeBytes: Number(table.readBigUInt64LE(i * packBytes + 32)),
        }),
      );
      const isBase = header.readBigUInt64LE(24) > 0n;
      this.#count(entries, isBase);
      await loadEntries(file, headerBytes + table.length, entries, numbers, index, isBase);
      return true;
    });
    return loaded === true;
  }

  #count(entries: number, isBase: boolean): void {
    if (isBase) {
      this.#baseEntries = entries;
      this.#entriesInDeltas = 0;
      this.#deltas = 0;
    } else {
      this.#entriesInDeltas += entries;
      this.#deltas++;
    }
  }

  /** True when the runs besides the base have become so many that a new base pays. */
  needsBase(runsMax: number): boolean {
    return this.#deltas >= runsMax || this.#entriesInDeltas > this.#baseEntries / 8 + 262_144;
  }

  /** Writes what is new since the last run. `words` name packs by their place in `packs`. */
  async append(packs: readonly KnownPack[], words: Uint32Array): Promise<void> {
    const run = await this.#begin(packs, words.length / 5, 0);
    await run.write(words);
    await run.end();
    this.#count(words.length / 5, false);
  }

  /** Writes everything into one run and removes the others. `packs` are numbered from 0. */
  async rewrite(index: BlockIndex, packs: readonly KnownPack[]): Promise<void> {
    const upTo = this.#next - 1;
    const slices = () =>
      Array.from(
        { length: index.slices },
        (_, i) => () => onlyPacksBelow(index.slice(i), packs.length),
      );
    let entries = 0;
    for (const slice of slices()) entries += slice().length / 5;
    const run = await this.#begin(packs, entries, Math.max(upTo, 1));
    for (const slice of slices()) await run.write(slice());
    await run.end();
    this.#count(entries, true);
    for (const number of await this.#runs()) if (number <= upTo) await this.#remove(number);
  }

  /** Forgets all runs. */
  async clear(): Promise<void> {
    for (const number of await this.#runs()) await this.#remove(number);
    this.#count(0, true);
  }

  async #begin(packs: readonly KnownPack[], entries: number, replaces: number) {
    const number = Math.max(this.#next, replaces + 1);
    this.#next = number + 1;
    const path = this.#path(number);
    const file = await this.#files.open(`${path}.new`, 'write');
    const hasher = Blake3Hasher.newKeyed(this.#key);
    let at = 0;
    const write = async (bytes: Buffer) => {
      hasher.update(bytes);
      await file.write([bytes], at);
      at += bytes.length;
    };
    await write(encodeHeader(packs.length, entries, replaces, this.#vaultId));
    await write(encodePacks(packs));
    return {
      write: (words: Uint32Array) =>
        write(Buffer.from(words.buffer, words.byteOffset, words.byteLength)),
      end: async () => {
        await file.write([hasher.digestBuffer()], at);
        await file.sync();
        await file.close();
        await this.#files.rename(`${path}.new`, path);
        await this.#files.syncDirectory(this.#directory);
      },
    };
  }

  #path(number: number): string {
    return join(this.#directory, `run-${number}.index`);
  }

  async #remove(number: number): Promise<void> {
    await this.#files.remove(this.#path(number)).catch((error: unknown) => {
      if (!isRouseError(error, 'not-found')) throw error;
    });
  }
}

function encodeHeader(packs: number, entries: number, replaces: number, vaultId: Buffer): Buffer {
  const header = Buffer.alloc(headerBytes);
  header.set(mark);
  header.writeUInt32LE(version, 8);
  header.writeUInt32LE(packs, 12);
  header.writeBigUInt64LE(BigInt(entries), 16);
  header.writeBigUInt64LE(BigInt(replaces), 24);
  header.set(vaultId.subarray(0, 16), 32);
  return header;
}

function encodePacks(packs: readonly KnownPack[]): Buffer {
  const table = Buffer.alloc(packs.length * packBytes);
  packs.forEach((pack, i) => {
    table.write(pack.name, i * packBytes, 'hex');
    table.writeBigUInt64LE(BigInt(pack.sizeBytes), i * packBytes + 32);
  });
  return table;
}

async function replacesUpTo(file: OpenFile): Promise<number> {
  const header = Buffer.alloc(headerBytes);
  if ((await file.read(header, 0)) !== headerBytes || !header.subarray(0, 8).equals(mark)) return 0;
  return Number(header.readBigUInt64LE(24));
}

async function loadEntries(
  file: OpenFile,
  start: number,
  entries: number,
  numbers: Uint32Array,
  index: BlockIndex,
  isBase: boolean,
): Promise<void> {
  const room = new Uint32Array(Math.min(pieceEntries, entries) * 5);
  for (let done = 0; done < entries; done += pieceEntries) {
    const words = room.subarray(0, Math.min(pieceEntries, entries - done) * 5);
    const bytes = Buffer.from(words.buffer, 0, words.byteLength);
    await file.read(bytes, start + done * indexEntryBytes);
    renumber(words, numbers);
    if (isBase && index.load(words, entries)) continue;
    for (let i = 0; i < words.length; i += 5) insertEntry(index, words, i);
  }
}

function insertEntry(index: BlockIndex, words: Uint32Array, at: number): void {
  index.insertWords(
    words[at] as number,
    words[at + 1] as number,
    words[at + 2] as number,
    words[at + 3] as number,
    words[at + 4] as number,
  );
}

function renumber(words: Uint32Array, numbers: Uint32Array): void {
  for (let i = 3; i < words.length; i += 5) {
    const word = words[i] as number;
    words[i] = ((word & 0xff000000) | (numbers[word & 0xffffff] as number)) >>> 0;
  }
}

/** Blocks of packs that became known while a base is written: the next run names them. */
function onlyPacksBelow(words: Uint32Array, packs: number): Uint32Array {
  let kept = 0;
  for (let i = 0; i < words.length; i += 5) {
    if (((words[i + 3] as number) & 0xffffff) >= packs) continue;
    if (kept < i) words.copyWithin(kept, i, i + 5);
    kept += 5;
  }
  return words.subarray(0, kept);
}
