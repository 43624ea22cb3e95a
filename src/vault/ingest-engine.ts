import { Worker } from 'node:worker_threads';
import { RouseError } from '../errors.ts';
import { keyedHash } from './hash.ts';
import { SlabViews, type SlabMemory } from './ingest-slab.ts';

/** Does the two costly steps for the first `count` blocks of a slab, elsewhere or here. */
export interface IngestEngine {
  hash(slab: number, count: number): Promise<void>;
  pack(slab: number, count: number): Promise<void>;
  close(): Promise<void>;
}

export interface WorkerSetup {
  readonly key: Uint8Array;
  readonly blockBytes: number;
  readonly slabs: readonly SlabMemory[];
}

export interface WorkerJob {
  readonly number: number;
  readonly step: 'hash' | 'pack';
  readonly slab: number;
  readonly count: number;
}

/** On this thread, with a turn for everybody else after each slab: tests, and small machines. */
export function inlineEngine(setup: WorkerSetup): IngestEngine {
  const hash = keyedHash(setup.key);
  const views = setup.slabs.map((memory) => new SlabViews(memory, setup.blockBytes));
  const turn = () => new Promise<void>((resolve) => void setImmediate(resolve));
  return {
    hash: async (slab, count) => {
      await turn();
      (views[slab] as SlabViews).hashBlocks(count, hash);
    },
    pack: async (slab, count) => {
      await turn();
      (views[slab] as SlabViews).packBlocks(count);
    },
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
  const give = (step: WorkerJob['step'], slab: number, count: number) => {
    const free = all.reduce((a, b) => (b.jobs < a.jobs ? b : a));
    return free.run({ number: number++, step, slab, count });
  };
  return {
    hash: (slab, count) => give('hash', slab, count),
    pack: (slab, count) => give('pack', slab, count),
    close: async () => {
      await Promise.all(all.map((worker) => worker.close()));
    },
  };
}

class IngestWorker {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, { resolve: () => void; reject: (e: unknown) => void }>();
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

  get jobs(): number {
    return this.#ended === undefined ? this.#waiting.size : Number.POSITIVE_INFINITY;
  }

  run(job: WorkerJob): Promise<void> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    if (this.#waiting.size === 0) this.#worker.ref();
    this.#waiting.set(job.number, { resolve, reject });
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
