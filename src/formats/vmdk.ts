import * as path from 'node:path';
import { RouseError } from '../errors.ts';
import { formatLimits } from '../limits.ts';
import type { ReadableDisk } from '../lib/disk.ts';
import { ImageFile } from './image-file.ts';
import { MappedDisk } from './mapped-disk.ts';
import type { DiskMap, Segment, TableNeeded } from './mapped-disk.ts';
import type { TableCache } from './table-cache.ts';
import { noParent, parseDescriptor, sectorBytes } from './vmdk-descriptor.ts';
import type { VmdkDescriptor, VmdkExtent } from './vmdk-descriptor.ts';
import {
  brokenVmdk,
  readEmbeddedDescriptor,
  readSparseHeader,
  SparseExtentMap,
  sparseMagic,
} from './vmdk-sparse.ts';
import type { SparseHeader } from './vmdk-sparse.ts';

/**
 * Opens a VMDK of any of these makes: a descriptor with flat, zero or sparse extents beside it, or
 * one sparse file with its descriptor inside (monolithicSparse, streamOptimized). A child disk is
 * read through its parent.
 */
export interface VmdkContext {
  readonly tables: TableCache;
  /** Opens the parent and answers its content id; the caller knows the chain's bounds. */
  openParent(
    fileName: string,
    referrer: ImageFile,
  ): Promise<{ readonly disk: ReadableDisk; readonly contentId: string | undefined }>;
}

export interface OpenedVmdk {
  readonly disk: ReadableDisk;
  readonly contentId: string | undefined;
}

export async function openVmdk(file: ImageFile, context: VmdkContext): Promise<OpenedVmdk> {
  const opened: { close(): Promise<void> }[] = [file];
  try {
    const head = Buffer.alloc(4);
    await file.readPadded(head, 0);
    const isSparse = head.readUInt32LE(0) === sparseMagic;
    const parts = isSparse
      ? await openMonolithic(file, context, opened)
      : await openDescribed(file, context, opened);
    const disk = new MappedDisk({
      name: file.path,
      sizeBytes: parts.sectors * sectorBytes,
      map: parts.map,
      tables: context.tables,
      close: () => closeAll(opened),
    });
    return { disk, contentId: parts.contentId };
  } catch (error) {
    // `file` belongs to the caller until this succeeds.
    await closeAll(opened.slice(1));
    throw error;
  }
}

async function closeAll(list: readonly { close(): Promise<void> }[]): Promise<void> {
  for (const item of list) await item.close();
}

interface VmdkParts {
  readonly sectors: number;
  readonly map: DiskMap;
  readonly contentId: string | undefined;
}

async function openMonolithic(
  file: ImageFile,
  context: VmdkContext,
  opened: { close(): Promise<void> }[],
): Promise<VmdkParts> {
  const header = await readSparseHeader(file);
  checkCapacity(file, header.capacitySectors);
  const text = await readEmbeddedDescriptor(file, header);
  const descriptor = text === undefined ? undefined : parseDescriptor(text, file.path);
  if (descriptor !== undefined && descriptor.extents.length > 1) {
    throw brokenVmdk(file.path, 'one sparse file that says it has several extents');
  }
  const parent = await openParentOf(descriptor, file, context, opened);
  const map = new SparseExtentMap({ file, header, tables: context.tables, parent, diskOffset: 0 });
  return { sectors: header.capacitySectors, map, contentId: descriptor?.contentId };
}

async function openDescribed(
  file: ImageFile,
  context: VmdkContext,
  opened: { close(): Promise<void> }[],
): Promise<VmdkParts> {
  if (file.sizeBytes > formatLimits.descriptorBytesMax) {
    throw brokenVmdk(file.path, `a descriptor of ${file.sizeBytes} bytes`);
  }
  const text = Buffer.alloc(file.sizeBytes);
  await file.read(text, 0);
  const descriptor = parseDescriptor(text.toString('utf8'), file.path);
  if (descriptor.extents.length === 0) {
    throw brokenVmdk(file.path, 'its descriptor names no extent');
  }
  const sectors = descriptor.extents.reduce((sum, extent) => sum + extent.sectors, 0);
  checkCapacity(file, sectors);
  const parent = await openParentOf(descriptor, file, context, opened);
  const parts: ExtentPart[] = [];
  let start = 0;
  for (const extent of descriptor.extents) {
    const map = await openExtent(file, extent, start, { context, parent, opened });
    parts.push({ start, end: start + extent.sectors * sectorBytes, map });
    start += extent.sectors * sectorBytes;
  }
  return { sectors, map: new ExtentsMap(parts), contentId: descriptor.contentId };
}

function checkCapacity(file: ImageFile, sectors: number): void {
  if (sectors === 0) {
    throw new RouseError('bad-request', `${file.path}: a VMDK of a disk of 0 bytes`, {
      advice: 'There is nothing to back up in it; check the name.',
    });
  }
  if (sectors * sectorBytes > formatLimits.sizeBytesMax) {
    throw brokenVmdk(file.path, `a disk of ${sectors} sectors is not believable`);
  }
}

async function openParentOf(
  descriptor: VmdkDescriptor | undefined,
  file: ImageFile,
  context: VmdkContext,
  opened: { close(): Promise<void> }[],
): Promise<ReadableDisk | undefined> {
  if (descriptor === undefined || descriptor.parentContentId === noParent) return undefined;
  if (descriptor.parentFileName === undefined) {
    throw brokenVmdk(file.path, 'it is a child disk that does not name its parent');
  }
  const parent = await context.openParent(descriptor.parentFileName, file);
  opened.push(parent.disk);
  if (parent.contentId !== undefined && parent.contentId !== descriptor.parentContentId) {
    throw new RouseError(
      'corrupt-data',
      `${file.path}: its parent ${descriptor.parentFileName} was changed since: its content id ` +
        `is ${parent.contentId}, not ${descriptor.parentContentId}`,
      { advice: 'Use the parent this disk was made from; a changed one gives wrong data.' },
    );
  }
  return parent.disk;
}

interface ExtentContext {
  readonly context: VmdkContext;
  readonly parent: ReadableDisk | undefined;
  readonly opened: { close(): Promise<void> }[];
}

async function openExtent(
  file: ImageFile,
  extent: VmdkExtent,
  diskOffset: number,
  { context, parent, opened }: ExtentContext,
): Promise<DiskMap> {
  if (extent.access === 'NOACCESS') {
    throw new RouseError('unsupported-format', `${file.path}: an extent that may not be read`);
  }
  switch (extent.type) {
    case 'ZERO':
      return { lookup: (_offset, length) => ({ kind: 'zero', length }) };
    case 'FLAT':
    case 'VMFS': {
      const flat = await openBeside(file, extent, opened);
      return flatMap(flat, extent);
    }
    case 'SPARSE': {
      const part = await openBeside(file, extent, opened);
      const header = await readSparseHeader(part);
      checkPart(part, header, extent);
      return new SparseExtentMap({
        file: part,
        header,
        tables: context.tables,
        parent,
        diskOffset,
      });
    }
    default:
      throw new RouseError(
        'unsupported-format',
        `${file.path}: an extent of type ${extent.type} cannot be read`,
        {
          advice:
            'Clone the disk to a flat one first: vmkfstools -i OLD NEW -d thin (a raw device mapping or snapshot delta has no file that can be read elsewhere).',
        },
      );
  }
}

function checkPart(part: ImageFile, header: SparseHeader, extent: VmdkExtent): void {
  if (header.capacitySectors >= extent.sectors) return;
  throw brokenVmdk(
    part.path,
    `it has ${header.capacitySectors} sectors, its descriptor says ${extent.sectors}`,
  );
}

/** Extents lie in the descriptor's folder; a descriptor from a stranger may name no other file. */
async function openBeside(
  file: ImageFile,
  extent: VmdkExtent,
  opened: { close(): Promise<void> }[],
): Promise<ImageFile> {
  const name = extent.fileName;
  if (name === undefined || name === '' || name === '.' || name === '..' || /[/\\\0]/.test(name)) {
    throw new RouseError(
      'unsupported-format',
      `${file.path}: its extent ${JSON.stringify(name ?? '')} is not a file beside it`,
      { advice: 'Put the extents into the folder of their descriptor and name them there.' },
    );
  }
  const extentPath = path.join(path.dirname(file.path), name);
  try {
    const part = await ImageFile.open(extentPath);
    opened.push(part);
    return part;
  } catch (error) {
    if (error instanceof RouseError && error.code === 'not-found') {
      throw new RouseError('not-found', `${extentPath}: missing; ${file.path} needs it`, {
        advice: `Put ${name} beside ${path.basename(file.path)}: a VMDK is more than one file.`,
        cause: error,
      });
    }
    throw error;
  }
}

function flatMap(flat: ImageFile, extent: VmdkExtent): DiskMap {
  const start = extent.offsetSectors * sectorBytes;
  const length = extent.sectors * sectorBytes;
  if (start + length > flat.sizeBytes) throw flat.truncated(start, length);
  return {
    lookup: (offset, lengthMax) => ({
      kind: 'file',
      length: lengthMax,
      file: flat,
      position: start + offset,
    }),
  };
}

interface ExtentPart {
  readonly start: number;
  readonly end: number;
  readonly map: DiskMap;
}

class ExtentsMap implements DiskMap {
  readonly #parts: readonly ExtentPart[];

  constructor(parts: readonly ExtentPart[]) {
    this.#parts = parts.filter((part) => part.end > part.start);
  }

  lookup(offset: number, lengthMax: number): Segment | TableNeeded {
    let low = 0;
    let high = this.#parts.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#parts[middle]?.end ?? 0) <= offset) low = middle + 1;
      else high = middle;
    }
    const part = this.#parts[low];
    if (part === undefined) throw new RouseError('internal', `no extent at ${offset}`);
    return part.map.lookup(offset - part.start, Math.min(lengthMax, part.end - offset));
  }
}
