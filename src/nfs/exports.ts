import { RouseError } from '../errors.ts';
import { ClientList } from './clients.ts';
import type { FileSystem } from './file-system.ts';
import { HandleMaker } from './handles.ts';
import { LatencyHistogram, type LatencyView } from './latency.ts';

/** What to export to whom. */
export interface ExportDefinition {
  /** Part of every handle: the same over restarts, different for each export; u32, not 0. */
  readonly id: number;
  /** Absolute, as clients mount it: `/mtree/Recover-proxy-id`. */
  readonly path: string;
  /** At least 16 bytes, the same over restarts: handles are made with it. */
  readonly secret: Uint8Array;
  /** IP addresses and CIDR prefixes of both families. Nobody else gets an answer. */
  readonly clients: readonly string[];
  readonly fileSystem: FileSystem;
}

/** An export as people and metrics see it. */
export interface ExportStatus {
  readonly id: number;
  readonly path: string;
  readonly clients: readonly string[];
  /** Addresses with an open connection that used this export. */
  readonly connected: readonly string[];
  /** Addresses that mounted it since the server started, and did not unmount it. */
  readonly mounted: readonly string[];
  /** Wall clock. */
  readonly servedSinceMs: number;
  /** Wall clock of the last call that was let in; undefined: never. */
  readonly lastUsedMs: number | undefined;
  readonly inFlightCalls: number;
  readonly reads: number;
  readonly readBytes: number;
  readonly writes: number;
  readonly writtenBytes: number;
  readonly others: number;
  /** Calls of addresses that are no client of it, and handles that we did not make. */
  readonly refused: number;
  /** Calls answered with an error that means harm: IO, NOSPC, SERVERFAULT. */
  readonly failed: number;
  readonly readLatency: LatencyView;
  readonly writeLatency: LatencyView;
  readonly otherLatency: LatencyView;
}

/** An export while it is served. */
export class Export {
  readonly id: number;
  readonly path: string;
  readonly clients: ClientList;
  readonly fileSystem: FileSystem;
  readonly handles: HandleMaker;
  lastUsedMs: number | undefined;
  inFlight = 0;
  reads = 0;
  readBytes = 0;
  writes = 0;
  writtenBytes = 0;
  others = 0;
  refused = 0;
  failed = 0;
  /** The newest connection of which notes about writes were given up (recent-writes.ts). */
  forgottenSerial = 0;
  readonly readLatency = new LatencyHistogram();
  readonly writeLatency = new LatencyHistogram();
  readonly otherLatency = new LatencyHistogram();
  #whenIdle: (() => void)[] = [];
  #verifier = -1n;
  verifierHigh = 0;
  verifierLow = 0;
  /** fattr3.fsid in two halves: attributes are written for every READ. */
  readonly fsidHigh: number;
  readonly fsidLow: number;

  readonly servedSinceMs: number;

  constructor(definition: ExportDefinition, nowMs: number) {
    this.servedSinceMs = nowMs;
    this.id = definition.id;
    this.path = checkedPath(definition.path);
    if (!Number.isInteger(definition.id) || definition.id < 1 || definition.id > 0xffff_ffff) {
      throw new RouseError('bad-request', `export ${this.path}: the id ${definition.id} is no u32`);
    }
    if (definition.secret.length < 16) {
      throw new RouseError('bad-request', `export ${this.path}: a secret of less than 16 bytes`);
    }
    this.clients = new ClientList(definition.clients);
    this.fileSystem = definition.fileSystem;
    const fsid = BigInt.asUintN(64, definition.fileSystem.fsid);
    this.fsidHigh = Number(fsid >> 32n);
    this.fsidLow = Number(fsid & 0xffff_ffffn);
    this.handles = new HandleMaker(definition.id, definition.secret);
  }

  /** Splits the write verifier once per change, so that WRITE needs no BigInt arithmetic. */
  refreshVerifier(): void {
    const verifier = this.fileSystem.writeVerifier;
    if (verifier === this.#verifier) return;
    this.#verifier = verifier;
    const unsigned = BigInt.asUintN(64, verifier);
    this.verifierHigh = Number(unsigned >> 32n);
    this.verifierLow = Number(unsigned & 0xffff_ffffn);
  }

  enter(): void {
    this.inFlight++;
  }

  leave(): void {
    this.inFlight--;
    if (this.inFlight > 0) return;
    for (const resolve of this.#whenIdle.splice(0)) resolve();
  }

  idle(): Promise<void> {
    if (this.inFlight === 0) return Promise.resolve();
    return new Promise((resolve) => this.#whenIdle.push(resolve));
  }

  status(connected: readonly string[], mounted: readonly string[]): ExportStatus {
    return {
      id: this.id,
      path: this.path,
      clients: this.clients.texts,
      connected,
      mounted,
      servedSinceMs: this.servedSinceMs,
      lastUsedMs: this.lastUsedMs,
      inFlightCalls: this.inFlight,
      reads: this.reads,
      readBytes: this.readBytes,
      writes: this.writes,
      writtenBytes: this.writtenBytes,
      others: this.others,
      refused: this.refused,
      failed: this.failed,
      readLatency: this.readLatency.view(),
      writeLatency: this.writeLatency.view(),
      otherLatency: this.otherLatency.view(),
    };
  }
}

function checkedPath(path: string): string {
  const parts = pathParts(path);
  const wrong = parts === undefined || parts.length === 0 || !path.startsWith('/');
  if (wrong || path.includes('\0')) {
    throw new RouseError('bad-request', `"${path}" is no absolute path to export`);
  }
  return `/${parts.join('/')}`;
}

/** The names of a path; undefined when one of them is `.` or `..`. */
export function pathParts(path: string): string[] | undefined {
  const parts = path.split('/').filter((part) => part !== '');
  return parts.includes('..') || parts.includes('.') ? undefined : parts;
}

/** All exports. `epoch` changes with each change, so that connections may remember a check. */
export class ExportTable {
  epoch = 0;
  readonly #byId = new Map<number, Export>();
  readonly #byPath = new Map<string, Export>();

  /** `nowMs`: wall clock. */
  add(definition: ExportDefinition, nowMs: number): Export {
    const made = new Export(definition, nowMs);
    if (this.#byPath.has(made.path)) {
      throw new RouseError('already-exists', `${made.path} is exported already`);
    }
    if (this.#byId.has(made.id)) {
      throw new RouseError('already-exists', `an export with the id ${made.id} exists already`);
    }
    this.#byId.set(made.id, made);
    this.#byPath.set(made.path, made);
    this.epoch++;
    return made;
  }

  /** From now on its handles are stale. undefined: there was none. */
  remove(path: string): Export | undefined {
    const found = this.#byPath.get(`/${(pathParts(path) ?? []).join('/')}`);
    if (found === undefined) return undefined;
    this.#byId.delete(found.id);
    this.#byPath.delete(found.path);
    this.epoch++;
    return found;
  }

  byId(id: number): Export | undefined {
    return this.#byId.get(id);
  }

  all(): Export[] {
    return [...this.#byPath.values()];
  }

  /** The export that holds `path`, and the names below it. */
  covering(path: string): { found: Export; below: string[] } | undefined {
    const parts = pathParts(path);
    if (parts === undefined || !path.startsWith('/')) return undefined;
    for (let count = parts.length; count > 0; count--) {
      const found = this.#byPath.get(`/${parts.slice(0, count).join('/')}`);
      if (found !== undefined) return { found, below: parts.slice(count) };
    }
    return undefined;
  }
}
