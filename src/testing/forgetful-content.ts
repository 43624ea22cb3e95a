import type { FaultOperation } from './forgetful-files.ts';
import type { SeededRandom } from './seeded-random.ts';

/**
 * The bytes of one file of the forgetful file system: as the process sees them (`now`), as a disk
 * is sure to hold them (`durable`), and the changes between the two. A change remembers whole
 * sectors as they were after it, as a page cache writes them back: a later write to a sector never
 * reaches the disk without the earlier ones to the same sector.
 */
export interface FaultCheck {
  readonly random: SeededRandom;
  /** Counts a changing call, and throws what was injected. */
  change(operation: FaultOperation, path: string): void;
  check(operation: FaultOperation, path: string): void;
  turns(): Promise<void>;
  freePages(): number;
  stopped(): boolean;
}

const pageBytes = 4096;
const sectorBytes = 512;

export interface PageUsage {
  pages: number;
}

type Change =
  | { readonly kind: 'sectors'; readonly position: number; readonly bytes: Buffer }
  | { readonly kind: 'zeros'; readonly from: number; readonly to: number }
  | { readonly kind: 'size'; readonly sizeBytes: number };

export class FileNode {
  handles = 0;
  #linked = true;
  #usage: PageUsage;
  #now = new Content();
  #durable = new Content();
  /** Changes after `durable`, oldest first; `#dropped` counts those that went before. */
  #pending: Change[] = [];
  #dropped = 0;

  constructor(usage: PageUsage) {
    this.#usage = usage;
  }

  get sizeBytes(): number {
    return this.#now.sizeBytes;
  }

  get allocatedBytes(): number {
    return this.#now.pages.size * pageBytes;
  }

  get pendingCount(): number {
    return this.#dropped + this.#pending.length;
  }

  read(target: Uint8Array, position: number): number {
    const bytes = Math.max(0, Math.min(target.length, this.#now.sizeBytes - position));
    this.#now.readInto(target.subarray(0, bytes), position);
    return bytes;
  }

  write(bytes: Uint8Array, position: number): void {
    if (bytes.length === 0) return;
    this.#counted(() => this.#now.write(bytes, position));
    const from = position - (position % sectorBytes);
    const end = position + bytes.length;
    const to = end + ((sectorBytes - (end % sectorBytes)) % sectorBytes);
    const sectors = Buffer.alloc(to - from);
    this.#now.readInto(sectors, from);
    this.#pending.push({ kind: 'sectors', position: from, bytes: sectors });
    if (end > this.#now.sizeBytes) this.#resize(end);
  }

  punch(position: number, length: number): void {
    const end = Math.min(position + length, this.#now.sizeBytes);
    if (end > position) this.#zero(position, end);
  }

  truncate(sizeBytes: number): void {
    const old = this.#now.sizeBytes;
    if (sizeBytes < old) this.#zero(sizeBytes, old);
    this.#resize(sizeBytes);
  }

  pagesNeeded(position: number, length: number): number {
    let needed = 0;
    const last = Math.floor((position + length - 1) / pageBytes);
    for (let page = Math.floor(position / pageBytes); page <= last; page++) {
      if (!this.#now.pages.has(page)) needed++;
    }
    return needed;
  }

  /** Everything before `until` (an earlier `pendingCount`) is on the disk. */
  sync(until: number): void {
    const done = this.#pending.splice(0, Math.max(0, until - this.#dropped));
    this.#dropped += done.length;
    for (const change of done) this.#durable.apply(change);
  }

  /** What a failed sync should have written is kept or lost; no later sync tries it again. */
  failSync(until: number, random: SeededRandom): void {
    const done = this.#pending.splice(0, Math.max(0, until - this.#dropped));
    this.#dropped += done.length;
    applySome(this.#durable, done, random);
  }

  afterPowerCut(random: SeededRandom): FileNode {
    const node = new FileNode(this.#usage);
    const content = this.#durable.copy();
    applySome(content, this.#pending, random);
    node.#now = content;
    node.#durable = content.copy();
    return node;
  }

  copy(): FileNode {
    const node = new FileNode(this.#usage);
    node.#now = this.#now.copy();
    node.#durable = this.#durable.copy();
    node.#pending = [...this.#pending];
    return node;
  }

  /** Counts this file's pages with another file system. */
  adopt(usage: PageUsage): void {
    this.#usage = usage;
    usage.pages += this.#now.pages.size;
  }

  unlink(): void {
    this.#linked = false;
    this.#free();
  }

  closeHandle(): void {
    this.handles--;
    this.#free();
  }

  #free(): void {
    if (this.#linked || this.handles > 0) return;
    this.#counted(() => this.#now.pages.clear());
  }

  #zero(from: number, to: number): void {
    this.#counted(() => this.#now.zero(from, to));
    this.#pending.push({ kind: 'zeros', from, to });
  }

  #resize(sizeBytes: number): void {
    this.#now.sizeBytes = sizeBytes;
    this.#pending.push({ kind: 'size', sizeBytes });
  }

  #counted(work: () => void): void {
    const before = this.#now.pages.size;
    work();
    this.#usage.pages += this.#now.pages.size - before;
  }
}

/** A random part of the changes: all, none, or each kept, dropped or torn for itself. */
function applySome(content: Content, changes: readonly Change[], random: SeededRandom): void {
  const mode = random.below(6);
  if (mode === 0) return;
  for (const change of changes) {
    if (mode === 1 || random.chance(0.45)) {
      content.apply(change);
    } else if (change.kind === 'sectors' && random.chance(0.4)) {
      content.tear(change, random);
    }
  }
  content.zero(content.sizeBytes, content.endOfPages());
}

class Content {
  sizeBytes = 0;
  readonly pages = new Map<number, Buffer>();

  copy(): Content {
    const content = new Content();
    content.sizeBytes = this.sizeBytes;
    for (const [page, bytes] of this.pages) content.pages.set(page, Buffer.from(bytes));
    return content;
  }

  endOfPages(): number {
    let last = -1;
    for (const page of this.pages.keys()) if (page > last) last = page;
    return (last + 1) * pageBytes;
  }

  readInto(target: Uint8Array, position: number): void {
    eachPage(position, position + target.length, (page, start, end, at) => {
      const bytes = this.pages.get(page);
      if (bytes === undefined) target.fill(0, at, at + end - start);
      else target.set(bytes.subarray(start, end), at);
    });
  }

  write(source: Uint8Array, position: number): void {
    eachPage(position, position + source.length, (page, start, end, at) => {
      let bytes = this.pages.get(page);
      if (bytes === undefined) this.pages.set(page, (bytes = Buffer.alloc(pageBytes)));
      bytes.set(source.subarray(at, at + end - start), start);
    });
  }

  zero(from: number, to: number): void {
    for (const [page, bytes] of this.pages) {
      const start = Math.max(0, from - page * pageBytes);
      const end = Math.min(pageBytes, to - page * pageBytes);
      if (start >= end) continue;
      if (start === 0 && end === pageBytes) this.pages.delete(page);
      else bytes.fill(0, start, end);
    }
  }

  apply(change: Change): void {
    if (change.kind === 'sectors') this.write(change.bytes, change.position);
    else if (change.kind === 'zeros') this.zero(change.from, change.to);
    else this.sizeBytes = change.sizeBytes;
  }

  tear(change: Change & { kind: 'sectors' }, random: SeededRandom): void {
    for (let at = 0; at < change.bytes.length; at += sectorBytes) {
      if (random.chance(0.5)) continue;
      this.write(change.bytes.subarray(at, at + sectorBytes), change.position + at);
    }
  }
}

function eachPage(
  from: number,
  to: number,
  visit: (page: number, start: number, end: number, at: number) => void,
): void {
  for (let position = from; position < to;) {
    const page = Math.floor(position / pageBytes);
    const start = position - page * pageBytes;
    const end = Math.min(pageBytes, to - page * pageBytes);
    visit(page, start, end, position - from);
    position += end - start;
  }
}
