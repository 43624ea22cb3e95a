import type { Database } from '../database/database.ts';
import type { Clock } from '../lib/clock.ts';
import { workflowLimits } from '../limits.ts';
import type { Engine } from './api.ts';

/**
 * Ended runs go some time after their end: the newest stay whatever their age, and beyond a highest
 * number the oldest go whatever theirs. Runs of a subject that is still needed stay with it: its
 * next run is numbered after them, and people look at them.
 */
export interface PruneBounds {
  readonly runsKeptMin: number;
  readonly runsKeptMax: number;
  readonly runsKeptMs: number;
}

/** Deletes what the bounds allow, some rows at a time; answers how many runs went. */
export async function pruneRuns(
  database: Database,
  clock: Pick<Clock, 'now'>,
  isNeeded: (subject: string) => Promise<boolean>,
  bounds: PruneBounds = workflowLimits,
): Promise<number> {
  const oldMs = clock.now() - bounds.runsKeptMs;
  const { count } = await database.query
    .selectFrom('runs')
    .select((eb) => eb.fn.countAll<number>().as('count'))
    .where('endedMs', 'is not', null)
    .executeTakeFirstOrThrow();
  let left = Number(count);
  let cursor = { endedMs: 0, seq: 0 };
  let gone = 0;
  while (left > bounds.runsKeptMin) {
    const page = await oldestAfter(database, cursor);
    const ids: string[] = [];
    for (const { id, subject, endedMs, seq } of page) {
      cursor = { endedMs, seq };
      const mayGo = left > bounds.runsKeptMax || (left > bounds.runsKeptMin && endedMs < oldMs);
      if (!mayGo) break;
      if (await isNeeded(subject)) continue;
      ids.push(id);
      left--;
    }
    await database.transaction(async () => {
      if (ids.length === 0) return;
      await database.query.deleteFrom('steps').where('runId', 'in', ids).execute();
      await database.query.deleteFrom('runs').where('id', 'in', ids).execute();
    });
    gone += ids.length;
    const last = page.at(-1);
    const isAtEnd = last === undefined || last.seq !== cursor.seq;
    if (isAtEnd || page.length < workflowLimits.prunedAtOnce) break;
    if (left <= bounds.runsKeptMax && cursor.endedMs >= oldMs) break;
  }
  return gone;
}

function oldestAfter(database: Database, { endedMs, seq }: { endedMs: number; seq: number }) {
  return database.query
    .selectFrom('runs')
    .select((eb) => ['id', 'subject', 'seq', eb.ref('endedMs').$notNull().as('endedMs')])
    .where('endedMs', 'is not', null)
    .where((eb) =>
      eb.or([
        eb('endedMs', '>', endedMs),
        eb.and([eb('endedMs', '=', endedMs), eb('seq', '>', seq)]),
      ]),
    )
    .orderBy('endedMs')
    .orderBy('seq')
    .limit(workflowLimits.prunedAtOnce)
    .execute();
}

const timer = 'workflows.prune';

/** Prunes now and then. To be called once, before the engine starts. */
export async function keepPruned(
  engine: Engine,
  clock: Pick<Clock, 'now'>,
  prune: () => Promise<number>,
): Promise<void> {
  engine.onTimer(timer, async () => {
    await prune();
    await engine.setTimer(timer, clock.now() + workflowLimits.pruneEveryMs, null);
  });
  await engine.setTimer(timer, clock.now() + workflowLimits.pruneFirstMs, null);
}
