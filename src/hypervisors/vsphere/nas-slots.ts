import { vsphereLimits } from './limits.ts';
import type { VimClient } from './client.ts';
import { isFault } from './faults.ts';
import { all, leaf, textAt } from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';

/** `NFS.MaxVolumes` of a host; its documented default when it does not tell. */
export async function maxVolumes(client: VimClient, options: Ref | undefined): Promise<number> {
  if (options === undefined) return vsphereLimits.nasVolumesDefault;
  try {
    const answer = await client.call('QueryOptions', options, [leaf('name', 'NFS.MaxVolumes')]);
    const said = all(answer, 'returnval').find((one) => textAt(one, 'key') === 'NFS.MaxVolumes');
    const value = Number(textAt(said, 'value') ?? Number.NaN);
    return Number.isFinite(value) && value > 0 ? value : vsphereLimits.nasVolumesDefault;
  } catch (error) {
    // InvalidName where a host does not know it; NoPermission does not keep it from mounting.
    if (!isFault(error)) throw error;
    return vsphereLimits.nasVolumesDefault;
  }
}

interface Known {
  readonly max: number;
  readonly atMs: number;
}

const known = new WeakMap<VimClient, Map<string, Known>>();

/**
 * The same, remembered for a while: a call for each host with every inventory would be too many. A
 * host that seems to be full is asked again, as somebody may just have raised it.
 */
export async function rememberedMaxVolumes(
  client: VimClient,
  options: Ref | undefined,
  used: number,
): Promise<number> {
  if (options === undefined) return vsphereLimits.nasVolumesDefault;
  const hosts = known.get(client) ?? new Map<string, Known>();
  known.set(client, hosts);
  const nowMs = client.clock.monotonic();
  const last = hosts.get(options.id);
  const isFresh = last !== undefined && nowMs - last.atMs < vsphereLimits.nasVolumesKeptMs;
  if (isFresh && used < last.max) return last.max;
  const max = await maxVolumes(client, options);
  hosts.set(options.id, { max, atMs: nowMs });
  return max;
}
