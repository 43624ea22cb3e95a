import { isRouseError } from '../../errors.ts';
import type { VimClient } from './client.ts';
import { isAway, isFault } from './faults.ts';
import type { Found } from './properties.ts';
import { runTask } from './tasks.ts';
import { leaf, node } from './vim-xml.ts';

export const trackingPaths = [
  'config.changeTrackingEnabled',
  'capability.changeTrackingSupported',
] as const;

/**
 * Switches changed block tracking on where it is off. A snapshot makes it begin, so this comes
 * before. Answers why it stays off, as a warning; nothing fails for it: disks are read whole then.
 */
export async function switchOnTracking(
  client: VimClient,
  found: Found,
  hasSnapshots: boolean,
): Promise<string | undefined> {
  if (found.text('config.changeTrackingEnabled') === 'true') return undefined;
  const every = 'every backup of it reads all of its disks';
  if (found.text('capability.changeTrackingSupported') === 'false') {
    return `change tracking is not supported by this machine's hardware version: ${every}`;
  }
  if (hasSnapshots) {
    return `change tracking is off, and is not switched on while the machine has snapshots: ${every}`;
  }
  try {
    const spec = node('spec', [leaf('changeTrackingEnabled', true)]);
    const what = `switching change tracking of ${found.ref.id} on`;
    await runTask(client, 'ReconfigVM_Task', found.ref, [spec], { what });
    return undefined;
  } catch (error) {
    const mayPass = isFault(error, 'NotAuthenticated') || isAway(error);
    if (!isRouseError(error) || mayPass) throw error;
    return `change tracking is off and cannot be switched on: ${error.message}; ${every}`;
  }
}
