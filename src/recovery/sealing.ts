import { endedRecoveryStates, type RecoveryRow } from '../catalog/recoveries.ts';
import type { SavesetView } from '../catalog/schema.ts';
import { RouseError } from '../errors.ts';
import { changesOf } from '../lib/changes.ts';
import { recoveryLimits } from '../limits.ts';
import { runJob } from '../proxy/jobs-client.ts';
import type { RunView, StepContext, Workflow } from '../workflows/api.ts';
import type { Sealing, SealService } from './schema.ts';
import type { RecoveryDesk } from './service.ts';
import { proxyOf } from './world.ts';

/**
 * Sealing makes a saveset of the clone as it is now; the recovery goes on as before. It is a run of
 * its own, so it survives kills of server and proxy and can be cancelled; several of one
 * recovery take turns. The proxy answers the saveset that is there when nothing was written since it
 * was sealed (proxy/clones.ts).
 */
type SealInput = { readonly recoveryId: string; readonly name: string; readonly cloneId: string };

/** What the step answers. */
type Sealed = { readonly savesetId: string };

export function sealing(desk: RecoveryDesk): Workflow<SealInput> {
  return {
    kind: 'recovery.seal',
    steps: [
      {
        number: 1,
        name: 'Seal',
        attemptsMax: recoveryLimits.sealAttemptsMax,
        run: (context) => sealClone(desk, context),
      },
    ],
    settled: async ({ state, error, steps }, { recoveryId, name }) => {
      const sealed = steps[0]?.result as Sealed | undefined;
      if (state === 'done' && sealed !== undefined) {
        const message = `what ${name} wrote is sealed as saveset ${sealed.savesetId}`;
        return desk.tell(recoveryId, 'info', 'recovery.sealed', message);
      }
      const why = error?.message ?? `sealing was ${state}`;
      const message = `what ${name} wrote was not sealed: ${why}`;
      await desk.tell(recoveryId, 'warning', 'recovery.not-sealed', message);
    },
  };
}

async function sealClone(desk: RecoveryDesk, context: StepContext<SealInput>): Promise<Sealed> {
  const { recoveryId, cloneId } = context.input;
  const proxy = await proxyOf(desk, recoveryId);
  const spec = { kind: 'seal', id: context.runId, cloneId, takenAtMs: desk.clock.now() } as const;
  const view = await runJob(proxy.calls, spec, context.signal, ({ doneBytes, totalBytes }) =>
    context.progress({ done: doneBytes, total: totalBytes, unit: 'bytes' }),
  );
  if (view.result?.kind !== 'saveset') {
    throw new RouseError('internal', `sealing ${cloneId} made no saveset`);
  }
  const { saveset } = view.result;
  await desk.savesetStored(saveset, proxy.name);
  return { savesetId: saveset.id };
}

export class Seals implements SealService {
  readonly #desk: RecoveryDesk;
  readonly #row: (reference: string) => Promise<RecoveryRow>;

  constructor(desk: RecoveryDesk, row: (reference: string) => Promise<RecoveryRow>) {
    this.#desk = desk;
    this.#row = row;
  }

  async begin(reference: string): Promise<Sealing> {
    const row = await this.#row(reference);
    const { id, cloneId, state } = row;
    if (cloneId === null || endedRecoveryStates.includes(state)) {
      throw new RouseError('wrong-state', `recovery ${id} is ${state}: nothing to seal`, {
        advice: 'What was written can be sealed until the recovery has ended.',
      });
    }
    await proxyOf(this.#desk, id);
    const { engine, random } = this.#desk;
    const subject = subjectOf(id);
    // One that has not begun will see the clone later than now.
    const runs = await engine.runs({ subject, active: true });
    const waiting = runs.find(({ state, steps }) => state === 'waiting' && !steps[0]?.startedMs);
    if (waiting !== undefined) return viewOf(waiting);
    const input = { recoveryId: id, name: row.name, cloneId };
    return viewOf(
      await engine.submit('recovery.seal', subject, input, `${id}.seal.${random.id()}`),
    );
  }

  async list(reference: string): Promise<readonly Sealing[]> {
    const { id } = await this.#row(reference);
    const runs = await this.#desk.engine.runs({ subject: subjectOf(id) });
    return runs.map(viewOf).toReversed();
  }

  async get(reference: string, sealId: string): Promise<Sealing> {
    const found = (await this.list(reference)).find(({ id }) => id === sealId);
    if (found !== undefined) return found;
    throw new RouseError('not-found', `recovery ${reference} knows no sealing ${sealId}`);
  }

  async cancel(reference: string, sealId: string): Promise<Sealing> {
    const { id, state } = await this.get(reference, sealId);
    if (state !== 'running') {
      throw new RouseError('wrong-state', `sealing ${id} is ${state} already`, {
        advice: 'There is nothing left to cancel.',
      });
    }
    await this.#desk.engine.cancel(id);
    return this.get(reference, id);
  }

  async *watch(reference: string, sealId: string, signal: AbortSignal): AsyncIterable<Sealing> {
    const changes = changesOf(signal, (wake) =>
      this.#desk.engine.onChange(({ id }) => {
        if (id === sealId) wake();
      }),
    );
    for await (const _ of changes) {
      const view = await this.get(reference, sealId);
      yield view;
      if (view.state !== 'running') return;
    }
  }

  /** Begins one and waits for its end. */
  async seal(reference: string): Promise<SavesetView> {
    const { id: recoveryId } = await this.#row(reference);
    const { id } = await this.begin(recoveryId);
    const { savesetId, error, state } = viewOf(await this.#desk.engine.finished(id));
    if (savesetId === null) {
      if (error === null) throw new RouseError('cancelled', `sealing ${id} was ${state}`);
      const { code, message, advice } = error;
      throw RouseError.fromProblem({
        code: code as RouseError['code'],
        title: message,
        status: 0,
        advice,
      });
    }
    const proxy = await proxyOf(this.#desk, recoveryId);
    return this.#desk.savesetView(await proxy.calls.saveset(savesetId));
  }
}

function subjectOf(recoveryId: string): string {
  return `seal/${recoveryId}`;
}

function viewOf(run: RunView): Sealing {
  const [step] = run.steps;
  const ended = run.state === 'done' || run.state === 'failed' || run.state === 'cancelled';
  return {
    id: run.id,
    state: ended ? (run.state as Sealing['state']) : 'running',
    startedMs: run.createdMs,
    endedMs: run.endedMs ?? null,
    doneBytes: step?.progress?.done ?? 0,
    totalBytes: step?.progress?.total ?? 0,
    savesetId: (step?.result as Sealed | undefined)?.savesetId ?? null,
    error: run.error ?? null,
  };
}
