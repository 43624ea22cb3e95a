import { formatBytes, plural } from '../lib/text.ts';
import { formatTime } from '../lib/times.ts';
import type { Saveset } from '../vault/api.ts';
import { isWritten, type RecoveryInput } from './plan.ts';
import type { RecoveryPlan } from './schema.ts';
import { skippedSteps, stepNamesOf } from './view.ts';

/** What was chosen for a dry run; null where nothing will do, or nothing is needed. */
export interface Choice {
  readonly device: { readonly name: string; readonly address: string };
  readonly proxy: string | null;
  readonly host: string | null;
  readonly clients: readonly string[];
  readonly leaseEndsMs: number;
}

/** Steps 1 to 11 as they would be made, in the words that a recovery shows afterwards. */
export function plannedSteps(
  input: RecoveryInput,
  saveset: Saveset,
  choice: Choice,
): RecoveryPlan['steps'] {
  const { mode } = input;
  const proxy = choice.proxy ?? 'none will do';
  const host = choice.host ?? 'none will do';
  const sizeBytes = saveset.disks.reduce((sum, { root }) => sum + root.sizeBytes, 0);
  const disks = `${plural(saveset.disks.length, 'disk')}, ${formatBytes(sizeBytes)}`;
  const to = choice.clients.length === 0 ? 'nobody' : choice.clients.join(', ');
  const details: Readonly<Record<string, string>> = {
    Device: `${choice.device.name} at ${choice.device.address}`,
    Proxy: proxy,
    Host: mode === 'publish' ? `for ${to}` : hostDetail(input, host),
    'Hand over': `saveset ${saveset.id} to ${proxy}`,
    'Ask for the copy': disks,
    Clone: `/${input.mtree}/Recover-${choice.proxy ?? 'PROXY'}-ID`,
    Export: choice.clients.length === 0 ? 'to nobody' : `to ${to} and nobody else`,
    Datastore: isWritten(input) ? `written to ${input.datastore}` : `rouse-ID on ${host}`,
    Configure: configured(input),
    Attach: `to ${input.target?.name ?? 'the target'}: ${input.disks?.join(', ') ?? 'all disks'}`,
    'Power on': input.powerOn ? `${input.name} on ${host}` : 'not asked for: --power-on',
    Available: mode === 'new' ? 'for good' : `until ${formatTime(choice.leaseEndsMs)}`,
  };
  return stepNamesOf(mode)
    .slice(0, 11)
    .map((name, index) => {
      const isSkipped = !input.isMoved && skippedSteps[mode].includes(index + 1);
      return {
        number: index + 1,
        name,
        detail: isSkipped ? 'skipped in this mode' : (details[name] ?? name),
      };
    });
}

function hostDetail({ target }: RecoveryInput, host: string): string {
  return target ? `${host}: ${target.name} runs on it` : host;
}

function configured({
  name,
  identity,
  connectNetworks,
  isMoved,
  datastore,
}: RecoveryInput): string {
  const who = identity.keep ? 'UUID and MACs of the backup' : 'new UUID and MACs';
  const where = isMoved ? `, moved to ${datastore} while it is off` : '';
  return `${name}, ${who}, networks ${connectNetworks ? 'connected' : 'disconnected'}${where}`;
}
