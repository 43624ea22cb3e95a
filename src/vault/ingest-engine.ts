import { Worker } from 'node:worker_threads';
import { RouseError } from '../errors.ts';
import { keyedHashInto } from './hash.ts';
import type { SlabMemory, SlabViews } from './ingest-slab.ts';

/** Does the two costly steps for the first `count` blocks of a slab, elsewhere or here. */
export interface IngestEngine {
  hash(slab: SharedSlab, count: number): Promise<void>;
  pack(slab: SharedSlab, count: number): Promise<void>;
  /** A thread has died: no more work can be given; make another engine. */
  readonly isBroken: boolean;
  close(): Promise<void>;
}

export interface SharedSlab {
  readonly number: number;
  readonly memory: SlabMemory;
  readonly views: SlabViews;
}

export interface WorkerSetup {
  readonly key: Uint8Array;
  readonly blockBytes: number;
}

export interface WorkerJob {
  readonly number: number;
  readonly step: 'hash' | 'pack';
  readonly slab: number;
  /** Comes with a worker's first job on this slab. */
  readonly memory: SlabMemory | undefined;
  readonly count: number;
}

/** On this thread, with a turn for everybody else after each slab: tests, and small machines. */
export function inlineEngine(setup: WorkerSetup): IngestEngine {
  const hash = keyedHashInto(setup.key);
  const turn = () => new Promise<void>((resolve) => void setImmediate(resolve));
  return {
    hash: async (slab, count) => {
      await turn();
      slab.views.hashBlocks(count, hash);
    },
    pack: async (slab, count) => {
      await turn();
      slab.views.packBlocks(count);
    },
    isBroken: false,
    close: async () => {},
  };
}

export interface WorkerAnswer {
  readonly number: number;
  readonly problem?: string;
}

/** On worker threads; the one with the least to do gets the next job. */
export function workerEngine(setup: WorkerSetup, workers: number): IngestEngine {
  const all = Array.from({ length: workers }, () => new IngestWorker(setup));
  let number = 0;
  const give = (step: WorkerJob['step'], slab: SharedSlab, count: number) => {
    const free = all.reduce((a, b) => (b.jobs < a.jobs ? b : a));
    return free.run(number++, step, slab, count);
  };
  return {
    hash: (slab, count) => give('hash', slab, count),
    pack: (slab, count) => give('pack', slab, count),
    get isBroken() {
      return all.some((worker) => worker.hasEnded);
    },
    close: async () => {
      await Promise.all(all.map((worker) => worker.close()));
    },
  };
}

class IngestWorker {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, { resolve: () => void; reject: (e: unknown) => void }>();
  readonly #knownSlabs = new Set<number>();
  #ended: RouseError | undefined;

  constructor(setup: WorkerSetup) {
    this.#worker = new Worker(new URL('./ingest-worker.ts', import.meta.url), {
      workerData: setup,
    });
    this.#worker.unref();
    this.#worker.on('message', (answer: WorkerAnswer) => this.#answered(answer));
    this.#worker.on('error', (error) => this.#end(`failed: ${String(error)}`));
    this.#worker.on('exit', (code) => this.#end(`ended with code ${code}`));
  }

  get hasEnded(): boolean {
    return this.#ended !== undefined;
  }

  get jobs(): number {
    return this.#ended === undefined ? this.#waiting.size : Number.POSITIVE_INFINITY;
  }

  run(number: number, step: WorkerJob['step'], slab: SharedSlab, count: number): Promise<void> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    if (this.#waiting.size === 0) this.#worker.ref();
    this.#waiting.set(number, { resolve, reject });
    const memory = this.#knownSlabs.has(slab.number) ? undefined : slab.memory;
    this.#knownSlabs.add(slab.number);
    const job: WorkerJob = { number, step, slab: slab.number, memory, count };
    // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a thread, not a window
    this.#worker.postMessage(job);
    return promise;
  }

  #answered({ number, problem }: WorkerAnswer): void {
    const waiting = this.#waiting.get(number);
    this.#waiting.delete(number);
    if (this.#waiting.size === 0) this.#worker.unref();
    if (problem === undefined) waiting?.resolve();
    else waiting?.reject(new RouseError('internal', `a worker of the vault failed: ${problem}`));
  }

  #end(what: string): void {
    this.#ended ??= new RouseError('internal', `a worker of the vault ${what}`);
    for (const { reject } of this.#waiting.values()) reject(this.#ended);
    this.#waiting.clear();
  }

  async close(): Promise<void> {
    await this.#worker.terminate();
  }
}
