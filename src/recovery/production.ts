import type { Hypervisor } from '../hypervisors/port.ts';
import { datastoreNameOf, type RecoveryInput } from './plan.ts';

/**
 * Whether the recovered machine has left the backup for other storage, by our relocation or by
 * anyone else's: then it is production, and nothing here stops or unregisters it any more.
 */
export async function isProduction(
  hypervisor: Hypervisor,
  recovery: RecoveryInput,
  machineId: string,
): Promise<boolean> {
  const users = await hypervisor.datastoreUsers(datastoreNameOf(recovery));
  if (users.includes(machineId)) return false;
  const { disks } = await hypervisor.machine(machineId);
  return disks.length > 0;
}
