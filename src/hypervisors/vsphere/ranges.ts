import { RouseError } from '../../errors.ts';
import type { VimClient } from './client.ts';
import { vsphereLimits } from './limits.ts';

/**
 * Fills `target` from a file of a datastore, with one ranged GET. The answer has to say that it is
 * that range of a file of that size: of anything else no byte is taken (`corrupt-data`).
 */
export async function readRange(
  client: VimClient,
  path: string,
  from: { readonly offset: number; readonly sizeBytes: number },
  target: Uint8Array,
  signal?: AbortSignal,
): Promise<void> {
  const { offset, sizeBytes } = from;
  const end = offset + target.length - 1;
  const file = path.replace(/\?.*$/u, '');
  const { status, headers, body } = await client.fetch(path, {
    headers: { Range: `bytes=${offset}-${end}` },
    // The whole of a disk is not what was asked for.
    only: 206,
    timeoutMs: vsphereLimits.rangeTimeoutMs,
    signal,
  });
  if (status !== 206) throw refusal(client.name, file, status);
  const said = headers['content-range'] ?? '';
  if (said !== `bytes ${offset}-${end}/${sizeBytes}` || body.length !== target.length) {
    throw new RouseError(
      'corrupt-data',
      `${client.name} gives ${body.length} bytes (${said || 'no range'}) of ${file} where ` +
        `${target.length} at ${offset} of ${sizeBytes} were asked for`,
    );
  }
  target.set(body);
}

function refusal(name: string, file: string, status: number): RouseError {
  const message = `${name} answers HTTP ${status} to a range of ${file}`;
  switch (status) {
    case 401:
    case 403:
      return new RouseError('forbidden', message, {
        advice: 'Give the user of Rouse a role with Datastore.Browse on that datastore.',
      });
    case 404:
      return new RouseError('not-found', message, {
        advice: 'Datastores such as vSAN and vVols have no flat files: such disks are read whole.',
      });
    case 200:
      return new RouseError('corrupt-data', `${name} does not give ranges of ${file}`);
    default:
      return new RouseError('hypervisor-error', message);
  }
}
