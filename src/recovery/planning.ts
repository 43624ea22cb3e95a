import type { Saveset } from '../vault/api.ts';
import { refuseTakenName } from './opening.ts';
import type { RecoveryInput } from './plan.ts';
import { candidateView, placeRecovery } from './placing.ts';
import type { RecoveryPlan } from './schema.ts';
import { attachments } from './targeting.ts';
import { skippedSteps, stepNamesOf } from './view.ts';
import type { RecoveryWorld } from './world.ts';

/** A dry run: what would be chosen, why, and what not. Changes nothing. */
export async function planOf(
  world: RecoveryWorld,
  input: RecoveryInput,
  saveset: Saveset,
): Promise<RecoveryPlan> {
  const { hypervisorId } = input;
  const hypervisor = hypervisorId === null ? undefined : await world.hypervisor(hypervisorId);
  const inventory = await hypervisor?.inventory();
  if (inventory !== undefined) refuseTakenName(inventory, input, undefined);
  const { candidates, refusal } = await placeRecovery(world, input, inventory);
  const chosen = refusal === undefined ? candidates[0] : undefined;
  const host = inventory?.hosts.find(({ id }) => id === chosen?.hostId);
  return {
    machine: input.machine,
    saveset: { id: saveset.id, takenAtMs: saveset.takenAtMs },
    mode: input.mode,
    name: input.name,
    hypervisor: hypervisorId === null ? null : await world.hypervisorName(hypervisorId),
    host: host?.name ?? null,
    proxy: chosen?.proxy ?? null,
    proxyAddress: chosen?.address ?? null,
    datastore: input.mode === 'new' ? input.datastore : null,
    clients: inventory === undefined ? input.clients : (host?.addresses ?? []),
    leaseEndsMs: world.clock.now() + input.leaseMs,
    steps: stepNamesOf(input.mode)
      .slice(0, 11)
      .map((name, index) => ({
        number: index + 1,
        name,
        detail: skippedSteps[input.mode].includes(index + 1) ? 'skipped in this mode' : '',
      })),
    changes: attachments(input, saveset),
    candidates: candidates.map(candidateView),
    refusal:
      refusal === undefined
        ? null
        : { code: refusal.code, message: refusal.message, advice: refusal.advice },
    warnings: [],
  };
}
