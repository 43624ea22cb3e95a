import type { BlobReader, BlobStore } from '../blobs/port.ts';
import { isRouseError, RouseError } from '../errors.ts';
import { vaultLimits } from '../limits.ts';
import type { VerifyProgress } from './api.ts';
import { names } from './format.ts';
import type { KnownPack } from './index-files.ts';
import { readPackTable, salvagePack, type PackEntry, type PackShape } from './pack.ts';
import type { VaultIndex } from './vault-index.ts';

export function packNameOf(blob: string): string {
  return blob.slice(names.packs.length);
}

const packName = /^[0-9a-f]{64}$/;

/**
 * Brings the index in line with the packs that are there: tables of unknown packs are read (not
 * their blocks), and when a known pack is gone or has another size, the index starts anew, so that
 * no backup ever counts on a block that was lost. Answers what is wrong, in sentences.
 */
export async function meetPacks(
  store: BlobStore,
  index: VaultIndex,
  shape: PackShape,
): Promise<string[]> {
  const listed = await store.list(names.packs);
  const present = listed.filter((blob) => packName.test(packNameOf(blob.name)));
  const problems: string[] = [];
  const { lost } = index.compare(present, packNameOf);
  for (const pack of lost) problems.push(`pack ${pack.name} is gone or has changed its size`);
  if (lost.length > 0) await index.clear();
  const { unknown } = index.compare(present, packNameOf);
  problems.push(...(await readTables(store, index, shape, unknown)));
  return problems;
}

export async function readTables(
  store: BlobStore,
  index: VaultIndex,
  shape: PackShape,
  packs: readonly KnownPack[],
  onProgress?: (progress: VerifyProgress) => void,
  signal?: AbortSignal,
): Promise<string[]> {
  const problems: string[] = [];
  const totalBytes = packs.reduce((sum, pack) => sum + pack.sizeBytes, 0);
  let doneBytes = 0;
  for (let at = 0; at < packs.length; at += vaultLimits.packTablesReadingMax) {
    if (signal?.aborted === true) throw new RouseError('cancelled', 'the rescan was cancelled');
    const some = packs.slice(at, at + vaultLimits.packTablesReadingMax);
    const tables = await Promise.all(some.map((pack) => entriesOf(store, shape, pack)));
    some.forEach((pack, i) => {
      const { entries, problem } = tables[i] as Found;
      if (problem !== undefined) problems.push(problem);
      if (entries !== undefined) index.addPack(pack, entries);
      doneBytes += pack.sizeBytes;
    });
    if (index.shouldSave) await index.save();
    onProgress?.({ doneBytes, totalBytes });
  }
  return problems;
}

interface Found {
  /** Undefined: it could not be read at all, and is tried again next time. */
  readonly entries: readonly PackEntry[] | undefined;
  readonly problem?: string;
}

/** The pack's table, or the good records of a damaged pack. */
async function entriesOf(store: BlobStore, shape: PackShape, pack: KnownPack): Promise<Found> {
  let reader: BlobReader | undefined;
  try {
    reader = await store.open(names.pack(pack.name));
    return { entries: await readPackTable(pack.name, reader, shape) };
  } catch (error) {
    if (!isRouseError(error)) throw error;
    if (error.code !== 'corrupt-data' || reader === undefined)
      return { entries: undefined, problem: `pack ${pack.name} cannot be read: ${error.message}` };
    return await salvaged(reader, shape, error);
  } finally {
    await reader?.close();
  }
}

async function salvaged(reader: BlobReader, shape: PackShape, error: RouseError): Promise<Found> {
  try {
    const entries = await salvagePack(reader, shape);
    return { entries, problem: `${error.message}; ${entries.length} good blocks were found in it` };
  } catch (readError) {
    if (!isRouseError(readError)) throw readError;
    return { entries: undefined, problem: `${error.message}; ${readError.message}` };
  }
}
