/**
 * Reads a clone disk: pages in the layer from the log, the rest from the base. Answers at once as
 * far as nothing has to be waited for. Every page of the log is checked against its CRC; a bad one
 * fails the read, it is never replaced by older bytes.
 */
import { crc32 } from 'node:zlib';
import { RouseError, toRouseError } from '../errors.ts';
import type { MaybePromise } from '../lib/maybe-promise.ts';
import type { VaultDisk } from '../vault/api.ts';
import { pageBytes, unitsPerPage } from './layer-format.ts';
import { absent, zeroFlag, type PageMapView, type Position } from './page-map.ts';
import { byteOffsetOf, type Segment, type Segments } from './segments.ts';

export interface DiskView {
  readonly disk: number;
  readonly map: PageMapView;
  readonly base: VaultDisk;
  readonly sizeBytes: number;
}

/** A part of a read that comes from one place. */
interface Piece {
  readonly kind: 'base' | 'zero' | 'log';
  readonly length: number;
  /** Of `log`: whole pages, or one page of which a part is wanted. */
  readonly position: Position;
  /** Of the first page, as the map said when the read began. */
  readonly checksum: number;
  readonly partial: boolean;
}

export class LayerReader {
  readonly #segments: Segments;
  readonly #onDamage: (disk: number, offset: number, message: string) => void;
  readonly #scratch = Buffer.alloc(pageBytes);

  constructor(
    segments: Segments,
    onDamage: (disk: number, offset: number, message: string) => void,
  ) {
    this.#segments = segments;
    this.#onDamage = onDamage;
  }

  /** Fills `target`; the range is within the disk. */
  read(view: DiskView, offset: number, target: Buffer): MaybePromise<void> {
    let at = 0;
    while (at < target.length) {
      const piece = pieceAt(view, offset + at, target.length - at);
      const whole = at === 0 && piece.length === target.length;
      const part = whole ? target : target.subarray(at, at + piece.length);
      if (!this.#readNow(view, piece, offset + at, part)) {
        return this.#readLater(view, offset, target, at);
      }
      at += piece.length;
    }
    return undefined;
  }

  async #readLater(view: DiskView, offset: number, target: Buffer, start: number): Promise<void> {
    for (let at = start; at < target.length;) {
      const piece = pieceAt(view, offset + at, target.length - at);
      const part = target.subarray(at, at + piece.length);
      if (piece.kind === 'zero') part.fill(0);
      else if (piece.kind === 'base') await this.#readBase(view, offset + at, part);
      else await this.#readLog(view, piece, offset + at, part);
      at += piece.length;
    }
  }

  #readNow(view: DiskView, piece: Piece, offset: number, part: Buffer): boolean {
    if (piece.kind === 'zero') {
      part.fill(0);
      return true;
    }
    if (piece.kind === 'base') return this.#readBaseNow(view, offset, part);
    const segment = this.#segmentOf(view, piece, offset);
    const bytes = piece.partial ? this.#scratch : part;
    if (segment.file.readNow(bytes, byteOffsetOf(piece.position)) !== bytes.length) return false;
    this.#check(view, piece, bytes, offset, segment);
    if (piece.partial) bytes.copy(part, 0, offset % pageBytes);
    return true;
  }

  #readBaseNow(view: DiskView, offset: number, part: Buffer): boolean {
    try {
      return view.base.readNow(part, offset);
    } catch (error) {
      throw this.#baseError(view, offset, error);
    }
  }

  async #readBase(view: DiskView, offset: number, part: Buffer): Promise<void> {
    try {
      await view.base.read(part, offset);
    } catch (error) {
      throw this.#baseError(view, offset, error);
    }
  }

  async #readLog(view: DiskView, piece: Piece, offset: number, part: Buffer): Promise<void> {
    const segment = this.#segmentOf(view, piece, offset);
    const bytes = piece.partial ? Buffer.allocUnsafe(pageBytes) : part;
    segment.readers++;
    try {
      const length = await segment.file.read(bytes, byteOffsetOf(piece.position));
      bytes.fill(0, length);
    } catch (error) {
      const { message } = toRouseError(error, segment.path);
      this.#onDamage(view.disk, offset, message);
      throw error;
    } finally {
      segment.readers--;
    }
    this.#check(view, piece, bytes, offset, segment);
    if (piece.partial) bytes.copy(part, 0, offset % pageBytes);
  }

  #segmentOf(view: DiskView, piece: Piece, offset: number): Segment {
    const segment = this.#segments.at(piece.position);
    if (segment === undefined) throw this.#damage(view, offset, 'the segment is missing');
    return segment;
  }

  #check(view: DiskView, piece: Piece, bytes: Buffer, offset: number, segment: Segment): void {
    if (bytes.length === pageBytes) {
      if (crc32(bytes) === piece.checksum) return;
      throw this.#damage(view, offset, `${segment.path} holds other bytes than were written`);
    }
    const firstPage = Math.floor(offset / pageBytes);
    for (let at = 0; at < bytes.length; at += pageBytes) {
      const index = view.map.find(firstPage + at / pageBytes);
      // Overwritten while the disk was waited for: then these are the bytes from before.
      const expected = piece.position + (at / pageBytes) * unitsPerPage;
      if (view.map.positionAt(index) !== expected) continue;
      if (crc32(bytes.subarray(at, at + pageBytes)) === view.map.checksumAt(index)) continue;
      throw this.#damage(view, offset + at, `${segment.path} holds other bytes than were written`);
    }
  }

  #damage(view: DiskView, offset: number, message: string): RouseError {
    this.#onDamage(view.disk, offset, message);
    return new RouseError('corrupt-data', `disk ${view.disk} at ${offset}: ${message}`);
  }

  #baseError(view: DiskView, offset: number, error: unknown): unknown {
    const { message } = toRouseError(error, `disk ${view.disk}`);
    this.#onDamage(view.disk, offset, message);
    return error;
  }
}

/** The longest part from `offset` that comes from one place. */
function pieceAt(view: DiskView, offset: number, wanted: number): Piece {
  const page = Math.floor(offset / pageBytes);
  const within = offset - page * pageBytes;
  const index = view.map.find(page);
  const position = index < 0 ? absent : view.map.positionAt(index);
  const checksum = index < 0 ? 0 : view.map.checksumAt(index);
  const kind = kindOf(position);
  if (kind === 'log' && (within !== 0 || wanted < pageBytes)) {
    const length = Math.min(wanted, pageBytes - within);
    return { kind, length, position, checksum, partial: true };
  }
  let length = pageBytes - within;
  for (let next = page + 1; length < wanted; next++) {
    if (kind === 'log' && wanted - length < pageBytes) break;
    const nextIndex = view.map.find(next);
    const found = nextIndex < 0 ? absent : view.map.positionAt(nextIndex);
    if (kindOf(found) !== kind) break;
    if (kind === 'log' && found !== position + (next - page) * unitsPerPage) break;
    length += pageBytes;
  }
  return { kind, length: Math.min(length, wanted), position, checksum, partial: false };
}

function kindOf(position: Position): Piece['kind'] {
  if (position === absent) return 'base';
  return position >= zeroFlag ? 'zero' : 'log';
}
