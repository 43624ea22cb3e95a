import type { Saveset } from '../vault/api.ts';
import { refuseTakenName, refuseUnfit } from './preflight.ts';
import type { RecoveryInput } from './plan.ts';
import { candidateView, placeRecovery } from './placing.ts';
import { plannedSteps } from './planned-steps.ts';
import type { RecoveryPlan } from './schema.ts';
import { attachments } from './targeting.ts';
import { refuseTarget, sizeOf } from './target-datastore.ts';
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
  const { candidates, refusal } = await placeRecovery(world, input, inventory);
  const chosen = refusal === undefined ? candidates[0] : undefined;
  const host = inventory?.hosts.find(({ id }) => id === chosen?.hostId);
  if (hypervisor !== undefined && inventory !== undefined) {
    refuseTarget(inventory, input, sizeOf(saveset));
    if (host === undefined) refuseTakenName(inventory, input, undefined);
    else await refuseUnfit(hypervisor, inventory, host, input, undefined);
  }
  const choice = {
    device: await world.device(input.savesetId),
    proxy: chosen?.proxy ?? null,
    host: host?.name ?? null,
    clients: inventory === undefined ? input.clients : (host?.addresses ?? []),
    leaseEndsMs: world.clock.now() + input.leaseMs,
  };
  return {
    machine: input.machine,
    saveset: { id: saveset.id, takenAtMs: saveset.takenAtMs },
    mode: input.mode,
    name: input.name,
    hypervisor: hypervisorId === null ? null : await world.hypervisorName(hypervisorId),
    host: choice.host,
    proxy: choice.proxy,
    proxyAddress: chosen?.address ?? null,
    datastore: input.mode === 'new' ? input.datastore : null,
    clients: choice.clients,
    leaseEndsMs: choice.leaseEndsMs,
    steps: plannedSteps(input, saveset, choice),
    changes: attachments(input, saveset),
    candidates: candidates.map(candidateView),
    refusal:
      refusal === undefined
        ? null
        : { code: refusal.code, message: refusal.message, advice: refusal.advice },
    warnings: [],
  };
}
