import { endedRecoveryStates, type RecoveryRow } from '../catalog/recoveries.ts';
import type { SavesetView } from '../catalog/schema.ts';
import { RouseError } from '../errors.ts';
import { runJob } from '../proxy/jobs-client.ts';
import type { RecoveryDesk } from './service.ts';
import { proxyOf } from './world.ts';

/** Makes a saveset of the clone as it is now; the recovery goes on as before. */
export async function sealWrites(desk: RecoveryDesk, row: RecoveryRow): Promise<SavesetView> {
  if (row.cloneId === null || endedRecoveryStates.includes(row.state)) {
    throw new RouseError('wrong-state', `recovery ${row.id} is ${row.state}: nothing to seal`, {
      advice: 'What was written can be sealed until the recovery has ended.',
    });
  }
  const proxy = await proxyOf(desk, row.id);
  const spec = {
    kind: 'seal',
    id: `${row.id}.seal.${desk.random.id()}`,
    cloneId: row.cloneId,
    takenAtMs: desk.clock.now(),
  } as const;
  const view = await runJob(proxy.calls, spec, new AbortController().signal, () => undefined);
  if (view.result?.kind !== 'saveset') {
    throw new RouseError('internal', `sealing ${row.cloneId} made no saveset`);
  }
  const { saveset } = view.result;
  await desk.savesetStored(saveset, proxy.name);
  const message = `what ${row.name} wrote is sealed as saveset ${saveset.id}`;
  await desk.tell(row.id, 'info', 'recovery.sealed', message);
  return desk.savesetView(saveset);
}
