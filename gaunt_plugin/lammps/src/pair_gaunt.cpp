// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

#include "pair_gaunt.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "gaunt_model.h"
#include "group.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <new>

using namespace LAMMPS_NS;

extern "C" void *gaunt_create_pair(void *lmp)
{
  return static_cast<Pair *>(new PairGaunt(static_cast<LAMMPS *>(lmp)));
}

PairGaunt::PairGaunt(LAMMPS *lmp) : Pair(lmp)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  unit_convert_flag = utils::get_supported_conversions(utils::ENERGY);
  // The virial is summed over edges, which also holds inside pair_style hybrid.
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_NOTAVAIL;
  // Several styles of a hybrid look at each other's cutoffs for ghosts, see init_one.
  ghostneigh = 1;
}

PairGaunt::~PairGaunt()
{
  if (copymode || !allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
  memory->destroy(cutghost);
}

void PairGaunt::allocate()
{
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
  memory->create(cutghost, n, n, "pair:cutghost");
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      setflag[i][j] = 0;
      cutsq[i][j] = cutghost[i][j] = 0.0;
    }
  allocated = 1;
}

void PairGaunt::settings(int narg, char **arg)
{
  device = "cpu";
  threads = 0;
  for (int i = 0; i < narg; i += 2) {
    const std::string name = arg[i];
    if (name != "device" && name != "threads")
      error->all(FLERR, "Unknown pair_style gaunt keyword {}: possible are device and threads",
                 name);
    if (i + 1 == narg) error->all(FLERR, "pair_style gaunt {}: the value is missing", name);
    if (name == "device") {
      device = arg[i + 1];
      const bool known = device == "cpu" || device == "cuda" || device == "auto" ||
          (utils::strmatch(device, "^cuda:\\d+$") && device.size() < 9);
      if (!known)
        error->all(FLERR, "pair_style gaunt device {}: possible are cpu, cuda, cuda:N and auto",
                   device);
    } else {
      threads = utils::inumeric(FLERR, arg[i + 1], false, lmp);
      if (threads < 1) error->all(FLERR, "pair_style gaunt threads must be at least 1");
    }
  }
}

// Read a whole file on rank 0 and give it to all, so that all succeed or fail together.
static std::string read_everywhere(const std::string &path, int me, MPI_Comm world)
{
  std::string bytes;
  int size = -1;
  if (me == 0) {
    std::ifstream file(path, std::ios::binary);
    if (file) {
      bytes.assign(std::istreambuf_iterator<char>(file), {});
      if (!file.bad() && bytes.size() < (1u << 31) - 1) size = static_cast<int>(bytes.size());
    }
  }
  MPI_Bcast(&size, 1, MPI_INT, 0, world);
  if (size <= 0) return "";
  bytes.resize(size);
  MPI_Bcast(&bytes[0], size, MPI_BYTE, 0, world);
  return bytes;
}

void PairGaunt::coeff(int narg, char **arg)
{
  const int ntypes = atom->ntypes;
  if (narg < 3 || std::strcmp(arg[0], "*") != 0 || std::strcmp(arg[1], "*") != 0)
    error->all(FLERR, "pair_style gaunt needs pair_coeff * * FILE and an element per atom type");
  if (narg != 3 + ntypes)
    error->all(FLERR,
               "pair_coeff * * {} names {} elements, but there are {} atom types: name one element "
               "(or NULL) per type",
               arg[2], narg - 3, ntypes);
  if (!allocated) allocate();

  std::string path = utils::get_potential_file_path(arg[2]);
  const auto file = read_everywhere(path, comm->me, world);
  if (file.empty()) error->all(FLERR, "pair_style gaunt can't read the file {}", arg[2]);

  // Ranks of one machine share its GPUs.
  MPI_Comm machine;
  int local_rank = 0;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, comm->me, MPI_INFO_NULL, &machine);
  MPI_Comm_rank(machine, &local_rank);
  MPI_Comm_free(&machine);

  std::string failure;
  try {
    model = std::make_unique<Gaunt::Model>(file, device, local_rank);
  } catch (const std::exception &problem) {
    failure = problem.what();
  }
  if (!failure.empty()) error->all(FLERR, "pair_style gaunt, file {}: {}", arg[2], failure);

  type_map.assign(ntypes + 1, -1);
  for (int type = 1; type <= ntypes; ++type) {
    const std::string symbol = arg[2 + type];
    if (symbol == "NULL") continue;
    for (std::size_t k = 0; k < model->elements.size(); ++k)
      if (model->elements[k] == symbol) type_map[type] = static_cast<int>(k);
    if (type_map[type] < 0) {
      std::string known;
      for (const auto &name : model->elements) known += " " + name;
      error->all(FLERR, "The model {} doesn't know element {} of atom type {}; it knows{}", arg[2],
                 symbol, type, known);
    }
  }
  int pairs = 0;
  for (int i = 1; i <= ntypes; ++i)
    for (int j = 1; j <= ntypes; ++j) {
      setflag[i][j] = j >= i && type_map[i] >= 0 && type_map[j] >= 0;
      pairs += setflag[i][j];
    }
  if (pairs == 0) error->all(FLERR, "pair_coeff * * {} maps no atom type to an element", arg[2]);
  if (comm->me == 0)
    utils::logmesg(lmp, "pair_style gaunt: {}, cutoff {} A, {} layers, {}, on {}{}\n", arg[2],
                   model->cutoff, model->layers, model->dtype, model->device, model->kernels);
}

// Atoms that LAMMPS takes out of neighbour lists because a bond joins them would be missing from
// the model's sums.
void PairGaunt::check_bonds()
{
  if (atom->molecular == Atom::ATOMIC) return;
  bool excluded[4] = {};
  bool any = false;
  for (int k = 1; k <= 3; ++k) {
    excluded[k] = force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0;
    any = any || excluded[k];
  }
  if (!any) return;
  int found = atom->molecular == Atom::TEMPLATE;
  if (!found && atom->nspecial) {
    for (int i = 0; i < atom->nlocal; ++i) {
      if (type_map[atom->type[i]] < 0) continue;
      const int *upto = atom->nspecial[i];    // cumulative
      found = found || (excluded[1] && upto[0] > 0) || (excluded[2] && upto[1] > upto[0]) ||
          (excluded[3] && upto[2] > upto[1]);
    }
  }
  int anywhere = 0;
  MPI_Allreduce(&found, &anywhere, 1, MPI_INT, MPI_MAX, world);
  if (anywhere)
    error->all(FLERR,
               "special_bonds takes bonded atoms out of the neighbor lists, but pair_style gaunt "
               "needs all neighbors: use special_bonds lj/coul 1.0 1.0 1.0 or define no bonds");
}

// comm_modify group, which Comm keeps to itself.
struct GhostGroup : Comm {
  static int of(const Comm *comm) { return comm->*(&GhostGroup::bordergroup); }
};

// Commands that take other pairs out of the lists, or leave ghosts away: the same.
void PairGaunt::check_lists()
{
  if (neighbor->includegroup || GhostGroup::of(comm))
    error->all(FLERR,
               "pair_style gaunt needs neighbors and ghosts of all atoms: leave out neigh_modify "
               "include and comm_modify group");
  bool found = false;
  for (int k = 0; k < neighbor->nex_type; ++k)
    found = found || (type_map[neighbor->ex1_type[k]] >= 0 && type_map[neighbor->ex2_type[k]] >= 0);
  int mine = 0, groups = 0;    // bits of the groups with atoms of the model
  for (int i = 0; i < atom->nlocal; ++i)
    if (type_map[atom->type[i]] >= 0) mine |= atom->mask[i];
  MPI_Allreduce(&mine, &groups, 1, MPI_INT, MPI_BOR, world);
  const int *bit = group->bitmask;
  for (int k = 0; k < neighbor->nex_group; ++k)
    found = found ||
        ((groups & bit[neighbor->ex1_group[k]]) && (groups & bit[neighbor->ex2_group[k]]));
  for (int k = 0; k < neighbor->nex_mol; ++k)
    found = found || (groups & bit[neighbor->ex_mol_group[k]]);
  if (found)
    error->all(FLERR,
               "neigh_modify exclude takes atoms of the model out of the neighbor lists, but "
               "pair_style gaunt needs all neighbors: use neigh_modify exclude none");
}

// An owned atom may have left its subdomain by half the skin, and so may the last ghost.
double PairGaunt::needed_comm_cutoff() const
{
  return model->layers * model->cutoff + neighbor->skin;
}

void PairGaunt::init_style()
{
  if (!model) error->all(FLERR, "pair_style gaunt needs a pair_coeff command before it runs");
  if (!atom->tag_enable) error->all(FLERR, "pair_style gaunt needs atom IDs (atom_modify id yes)");
  if (!force->newton_pair) error->all(FLERR, "pair_style gaunt needs newton pair on");
  if (std::strcmp(update->unit_style, "metal") == 0)
    energy_unit = 1.0;
  else if (std::strcmp(update->unit_style, "real") == 0)
    energy_unit = utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL);
  else
    error->all(FLERR, "pair_style gaunt needs units metal or real, not {}", update->unit_style);
  check_bonds();
  check_lists();
  Gaunt::set_threads(threads > 0 ? threads : comm->nthreads);

  // On one rank every ghost is the image of an atom whose neighbours are at hand.
  needs_ghosts = comm->nprocs > 1 && model->layers > 1;
  neighbor->add_request(
      this, NeighConst::REQ_FULL | (needs_ghosts ? NeighConst::REQ_GHOST : NeighConst::REQ_DEFAULT));
  const double needed = needed_comm_cutoff();
  // LAMMPS has no lists of ghosts for several kinds of cutoffs.
  const bool several = neighbor->style != Neighbor::BIN && neighbor->style != Neighbor::NSQ;
  if (needs_ghosts && (several || comm->mode != Comm::SINGLE))
    error->all(FLERR,
               "pair_style gaunt needs neighbor style bin (or nsq) and comm_modify mode single cutoff "
               "{} on several ranks",
               needed);
  if (needs_ghosts && comm->cutghostuser < needed) {
    comm->cutghostuser = needed;
    if (comm->me == 0)
      utils::logmesg(lmp, "pair_style gaunt: {} layers need comm_modify cutoff {}, set\n",
                     model->layers, needed);
  }
}

double PairGaunt::init_one(int i, int j)
{
  cutghost[i][j] = cutghost[j][i] = model->cutoff;
  return model->cutoff;
}

void PairGaunt::setup()
{
  if (!needs_ghosts) return;
  const double needed = needed_comm_cutoff();
  if (comm->get_comm_cutoff() < needed * (1.0 - 1e-12))
    error->all(FLERR,
               "The communication cutoff {} is too short for {} layers of {} Angstrom: use "
               "comm_modify cutoff {}",
               comm->get_comm_cutoff(), model->layers, model->cutoff, needed);
}

void PairGaunt::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);

  const int all = atom->nlocal + atom->nghost;
  tags.resize(all);
  types.resize(all);
  for (int i = 0; i < all; ++i) {
    tags[i] = atom->tag[i];
    types[i] = type_map[atom->type[i]];
  }
  // Monte Carlo fixes try a deletion by excluding an atom from all others: it isn't there.
  for (int k = 0; k < neighbor->nex_group; ++k) {
    if (neighbor->ex2_group[k] != 0) continue;    // group all
    const int gone = group->bitmask[neighbor->ex1_group[k]];
    for (int i = 0; i < all; ++i)
      if (atom->mask[i] & gone) types[i] = -1;
  }
  Gaunt::Atoms atoms;
  atoms.num_owned = list->inum;
  atoms.owned = list->ilist;
  atoms.x = atom->x;
  atoms.tag = tags.data();
  atoms.type = types.data();
  atoms.num_neighbors = list->numneigh;
  atoms.neighbors = list->firstneigh;
  atoms.neighbor_mask = NEIGHMASK;
  Gaunt::Graph graph;
  Gaunt::Result result;
  std::string failure;
  try {
    graph = Gaunt::build_graph(atoms, model->cutoff, model->layers);
    if (graph.num_owned > 0) result = model->evaluate(graph);
  } catch (const std::bad_alloc &) {
    failure = fmt::format("out of memory while collecting the edges of {} atoms", all);
  } catch (const std::exception &problem) {
    failure = problem.what();
  }
  if (!failure.empty()) error->one(FLERR, "pair_style gaunt: {}", failure);
  bytes = 12.0 * all + 16.0 * graph.types.size() + 64.0 * graph.senders.size();

  for (std::int64_t n = 0; n < graph.num_owned; ++n) {
    const double energy = energy_unit * result.energies[n];
    if (eflag_global) eng_vdwl += energy;
    if (eflag_atom) eatom[graph.atoms[n]] += energy;
  }

  // The energy depends on d = x_receiver - x_sender, so the forces are -g and +g with g = dE/dd,
  // and the virial sum(x f) is -d g. Ghosts hand their share back, as newton pair on means.
  double **f = atom->f;
  for (std::size_t e = 0; e < graph.senders.size(); ++e) {
    const int sender = graph.atoms[graph.senders[e]];
    const int receiver = graph.atoms[graph.receivers[e]];
    const double *d = &graph.vectors[3 * e];
    double g[3];
    for (int k = 0; k < 3; ++k) {
      g[k] = energy_unit * result.gradients[3 * e + k];
      f[sender][k] += g[k];
      f[receiver][k] -= g[k];
    }
    if (!vflag_either) continue;
    // The sum over all edges is symmetric, single edges need not be.
    const double v[6] = {-d[0] * g[0],
                         -d[1] * g[1],
                         -d[2] * g[2],
                         -0.5 * (d[0] * g[1] + d[1] * g[0]),
                         -0.5 * (d[0] * g[2] + d[2] * g[0]),
                         -0.5 * (d[1] * g[2] + d[2] * g[1])};
    for (int k = 0; k < 6; ++k) {
      if (vflag_global) virial[k] += v[k];
      if (vflag_atom) {
        vatom[sender][k] += 0.5 * v[k];
        vatom[receiver][k] += 0.5 * v[k];
      }
    }
  }
}

double PairGaunt::memory_usage() { return Pair::memory_usage() + bytes; }

void *PairGaunt::extract(const char *name, int &dim)
{
  dim = 0;
  return std::strcmp(name, "cutoff") == 0 && model ? &model->cutoff : nullptr;
}
