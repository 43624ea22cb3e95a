/** One of the threads that hash and pack blocks; it runs nice, so that guests' reads come first. */
import { createRequire } from 'node:module';
import { setPriority } from 'node:os';
import { parentPort, workerData } from 'node:worker_threads';
import { vaultLimits } from '../limits.ts';
import { keyedHashInto } from './hash.ts';
import type { WorkerAnswer, WorkerJob, WorkerSetup } from './ingest-engine.ts';
import { SlabViews } from './ingest-slab.ts';

const setup = workerData as WorkerSetup;
const hash = keyedHashInto(setup.key);
const slabs: SlabViews[] = [];

beNice();

parentPort?.on('message', (job: WorkerJob) => {
  // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a thread, not a window
  parentPort?.postMessage(run(job));
});

function run(job: WorkerJob): WorkerAnswer {
  try {
    if (job.memory !== undefined) slabs[job.slab] = new SlabViews(job.memory, setup.blockBytes);
    const slab = slabs[job.slab] as SlabViews;
    if (job.step === 'hash') slab.hashBlocks(job.count, hash);
    else slab.packBlocks(job.count);
    return { number: job.number };
  } catch (error) {
    return { number: job.number, problem: String(error) };
  }
}

/** setpriority(2) takes a thread's id on Linux; without koffi the workers stay as eager as all. */
function beNice(): void {
  try {
    const loaded: unknown = createRequire(import.meta.url)('koffi');
    const gettid: () => number = (loaded as typeof import('koffi'))
      .load('libc.so.6')
      .func('int gettid()');
    setPriority(gettid(), vaultLimits.ingestNiceness);
  } catch {
    return;
  }
}
