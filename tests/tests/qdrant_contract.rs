//! What Weir relies on in Qdrant: the same cases on the embedded server and, when `WEIR_TEST_QDRANT_URL` names one, on
//! a real Qdrant (`WEIR_TEST_QDRANT_API_KEY` is its key).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod qdrant;

use qdrant_client::Payload;
use qdrant_client::qdrant::{
    Condition, CountPointsBuilder, CreateAliasBuilder, CreateFieldIndexCollectionBuilder, DeletePointsBuilder,
    FieldType, Filter, Fusion, GetPointsBuilder, KeywordIndexParamsBuilder, Modifier, NamedVectors, PayloadSchemaType,
    PointStruct, PointsIdsList, PrefetchQueryBuilder, Query, QueryPointsBuilder, RrfBuilder, ScrollPointsBuilder,
    SetPayloadPointsBuilder, UpdateMode, UpsertPointsBuilder, Value, Vector, WriteOrdering, WriteOrderingType,
    payload_index_params::IndexParams,
};
use serde_json::json;

use crate::qdrant::*;

#[tokio::test]
async fn collections_are_made_described_listed_and_deleted() {
    on_every_server(|client, name| async move {
        assert!(!client.collection_exists(&name).await.unwrap());
        assert_eq!(code(&client.collection_info(&name).await.unwrap_err()), NOT_FOUND);
        create(&client, &name).await;
        assert!(client.collection_exists(&name).await.unwrap());
        assert!(client.create_collection(collection(&name)).await.is_err(), "a second one of the same name");

        let info = client.collection_info(&name).await.unwrap().result.unwrap();
        let config = info.config.unwrap();
        assert_eq!(config.metadata["weir.model"], Value::from("test"));
        let wanted = collection(&name);
        let params = config.params.unwrap();
        let size = |config: Option<qdrant_client::qdrant::VectorsConfig>| match config.unwrap().config.unwrap() {
            qdrant_client::qdrant::vectors_config::Config::ParamsMap(map) => {
                (map.map["dense"].size, map.map["dense"].distance)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(size(params.vectors_config), size(wanted.vectors_config));
        assert_eq!(params.sparse_vectors_config.unwrap().map["text"].modifier, Some(Modifier::Idf.into()));
        assert_eq!(info.payload_schema["revision"].data_type, i32::from(PayloadSchemaType::Integer));

        let names = client.list_collections().await.unwrap().collections;
        assert!(names.iter().any(|collection| collection.name == name));
        client.delete_collection(&name).await.unwrap();
        assert!(!client.collection_exists(&name).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn a_tenant_index_is_reported_as_one() {
    on_every_server(|client, name| async move {
        client.create_collection(collection(&name)).await.unwrap();
        let index = CreateFieldIndexCollectionBuilder::new(&name, "tenant", FieldType::Keyword)
            .field_index_params(KeywordIndexParamsBuilder::default().is_tenant(true))
            .wait(true);
        client.create_field_index(index).await.unwrap();
        let info = client.collection_info(&name).await.unwrap().result.unwrap();
        match info.payload_schema["tenant"].params.clone().unwrap_or_default().index_params {
            Some(IndexParams::KeywordIndexParams(params)) => assert_eq!(params.is_tenant, Some(true)),
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[tokio::test]
async fn an_alias_stands_for_its_collection_and_moves_at_once() {
    on_every_server(|client, name| async move {
        let (first, second, alias) = (format!("{name}-1"), format!("{name}-2"), format!("{name}-alias"));
        for collection in [&first, &second] {
            create(&client, collection).await;
        }
        upsert(&client, &second, vec![point(1, [1.0, 0.0, 0.0], &[], json!({}))]).await;
        client.create_alias(CreateAliasBuilder::new(&first, &alias)).await.unwrap();
        assert_eq!(count(&client, &alias, Filter::default()).await, 0);
        client.create_alias(CreateAliasBuilder::new(&second, &alias)).await.unwrap();
        assert_eq!(count(&client, &alias, Filter::default()).await, 1);
        let aliases = client.list_aliases().await.unwrap().aliases;
        assert!(aliases.iter().any(|found| found.alias_name == alias && found.collection_name == second));
        client.delete_alias(&alias).await.unwrap();
        assert!(client.count(CountPointsBuilder::new(&alias)).await.is_err());
        for collection in [&first, &second] {
            client.delete_collection(collection).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn points_are_written_read_changed_and_deleted() {
    on_every_server(|client, name| async move {
        create(&client, &name).await;
        let points = (1..=25)
            .map(|id| point(id, [1.0, 0.0, 0.0], &[(7, 1.5)], json!({"tenant": "a", "revision": id, "text": "x"})))
            .collect();
        upsert(&client, &name, points).await;

        let request =
            GetPointsBuilder::new(&name, vec![3.into(), 99.into(), 1.into()]).with_payload(true).with_vectors(true);
        let found = client.get_points(request).await.unwrap().result;
        assert_eq!(found.len(), 2, "a point that is not there is left out");
        let third = found.iter().find(|point| number(point.id.as_ref()) == 3).unwrap();
        assert_eq!(third.payload["revision"], Value::from(3));
        let vectors = third.vectors.clone().unwrap();
        assert!(vectors.get_vector_by_name("dense").is_some() && vectors.get_vector_by_name("text").is_some());

        // Payloads come unasked from a scroll, and from nothing else; vectors from nothing.
        let unasked = client.scroll(ScrollPointsBuilder::new(&name).limit(1)).await.unwrap().result;
        assert!(!unasked[0].payload.is_empty() && unasked[0].vectors.is_none());
        let unasked = client.get_points(GetPointsBuilder::new(&name, vec![3.into()])).await.unwrap().result;
        assert!(unasked[0].payload.is_empty() && unasked[0].vectors.is_none());
        let query = QueryPointsBuilder::new(&name).query(vec![1.0_f32, 0.0, 0.0]).using("dense").limit(1);
        assert!(client.query(query).await.unwrap().result[0].payload.is_empty());

        let mut seen = Vec::new();
        let mut offset = None;
        loop {
            let mut request = ScrollPointsBuilder::new(&name).limit(10).filter(Filter::must([below("revision", 24.0)]));
            if let Some(offset) = offset {
                request = request.offset::<qdrant_client::qdrant::PointId>(offset);
            }
            let page = client.scroll(request).await.unwrap();
            seen.extend(page.result.iter().map(|point| number(point.id.as_ref())));
            offset = page.next_page_offset;
            if offset.is_none() {
                break;
            }
        }
        assert_eq!(seen, (1..24).collect::<Vec<_>>(), "every point once, in order");

        let change = SetPayloadPointsBuilder::new(&name, payload(json!({"text": "y"})))
            .points_selector(PointsIdsList { ids: vec![1.into()] })
            .wait(true);
        client.set_payload(change).await.unwrap();
        assert_eq!(integer(&client, &name, 1, "revision").await, Some(1), "other fields stay");
        assert_eq!(count(&client, &name, Filter::must([Condition::matches("text", "y".to_owned())])).await, 1);

        let by_id = DeletePointsBuilder::new(&name).points(PointsIdsList { ids: vec![1.into(), 2.into()] }).wait(true);
        client.delete_points(by_id).await.unwrap();
        let by_filter = DeletePointsBuilder::new(&name).points(Filter::must([below("revision", 6.0)])).wait(true);
        client.delete_points(by_filter).await.unwrap();
        assert_eq!(count(&client, &name, Filter::default()).await, 20);
    })
    .await;
}

#[tokio::test]
async fn filters_combine_and_lie_in_each_other() {
    on_every_server(|client, name| async move {
        create(&client, &name).await;
        let points = (1..=10)
            .map(|id| {
                let tenant = if id % 2 == 0 { "even" } else { "odd" };
                point(
                    id,
                    [1.0, 0.0, 0.0],
                    &[],
                    json!({"tenant": tenant, "revision": id, "tags": [format!("t{id}"), "all"], "big": id == 10}),
                )
            })
            .collect();
        upsert(&client, &name, points).await;
        let tenant = |tenant: &str| Condition::matches("tenant", tenant.to_owned());
        let cases = [
            (Filter::must([tenant("even"), below("revision", 5.0)]), 2),
            (Filter::should([Condition::matches("revision", 1_i64), Condition::matches("revision", 2_i64)]), 2),
            (Filter { must: vec![tenant("odd")], must_not: vec![below("revision", 4.0)], ..Filter::default() }, 3),
            (Filter::must([Condition::matches("tags", "t3".to_owned())]), 1),
            (Filter::must([Condition::matches("tags", "all".to_owned())]), 10),
            (Filter::must([Condition::matches("big", true)]), 1),
            (Filter::must([Condition::matches("revision", vec![1_i64, 4, 77])]), 2),
            (Filter::must([Condition::has_id([1_u64, 2, 99])]), 2),
            (Filter::must([Condition::is_empty("missing")]), 10),
            (Filter::min_should(2, [tenant("odd"), below("revision", 3.0), Condition::matches("revision", 1_i64)]), 1),
            (
                Filter::should([
                    Filter::must([tenant("even"), Condition::matches("revision", 2_i64)]).into(),
                    Filter::must([tenant("odd"), below("revision", 4.0)]).into(),
                ]),
                3,
            ),
        ];
        for (filter, wanted) in cases {
            assert_eq!(count(&client, &name, filter.clone()).await, wanted, "{filter:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_conditional_upsert_changes_only_points_that_meet_the_condition_and_inserts_new_ones() {
    on_every_server(|client, name| async move {
        create(&client, &name).await;
        let head = |id, revision: i64| {
            PointStruct::new(id, NamedVectors::default(), payload(json!({"tenant": "a", "revision": revision})))
        };
        let older =
            |id: u64, revision: f64| Filter::must([Condition::has_id([id]), below("revision", revision)]).into();
        let move_to = |heads: Vec<PointStruct>, condition: Filter| {
            UpsertPointsBuilder::new(&name, heads)
                .update_filter(condition)
                .ordering(WriteOrdering { r#type: WriteOrderingType::Strong.into() })
                .wait(true)
        };
        client.upsert_points(move_to(vec![head(1, 5)], Filter::must([below("revision", 5.0)]))).await.unwrap();
        assert_eq!(integer(&client, &name, 1, "revision").await, Some(5), "a new point is inserted");
        client.upsert_points(move_to(vec![head(1, 4)], Filter::must([below("revision", 4.0)]))).await.unwrap();
        assert_eq!(integer(&client, &name, 1, "revision").await, Some(5), "no way back");
        client.upsert_points(move_to(vec![head(1, 5)], Filter::must([below("revision", 5.0)]))).await.unwrap();
        assert_eq!(integer(&client, &name, 1, "revision").await, Some(5));

        // Many at once, each with a condition of its own: one may move, one may not, one is new.
        client.upsert_points(UpsertPointsBuilder::new(&name, vec![head(2, 9)]).wait(true)).await.unwrap();
        let all = Filter::should([older(1, 6.0), older(2, 8.0), older(3, 1.0)]);
        client.upsert_points(move_to(vec![head(1, 6), head(2, 8), head(3, 1)], all)).await.unwrap();
        assert_eq!(integer(&client, &name, 1, "revision").await, Some(6));
        assert_eq!(integer(&client, &name, 2, "revision").await, Some(9));
        assert_eq!(integer(&client, &name, 3, "revision").await, Some(1));

        // Without the condition it would have moved: the check above can fail.
        client.upsert_points(UpsertPointsBuilder::new(&name, vec![head(2, 8)]).wait(true)).await.unwrap();
        assert_eq!(integer(&client, &name, 2, "revision").await, Some(8));
    })
    .await;
}

#[tokio::test]
async fn update_modes_insert_only_or_update_only() {
    on_every_server(|client, name| async move {
        create(&client, &name).await;
        let at = |id, revision: i64| point(id, [1.0, 0.0, 0.0], &[], json!({"revision": revision}));
        upsert(&client, &name, vec![at(1, 1)]).await;
        let with = |mode| UpsertPointsBuilder::new(&name, vec![at(1, 2), at(2, 2)]).update_mode(mode).wait(true);
        client.upsert_points(with(UpdateMode::InsertOnly)).await.unwrap();
        assert_eq!(integer(&client, &name, 1, "revision").await, Some(1));
        assert_eq!(integer(&client, &name, 2, "revision").await, Some(2));
        let update =
            UpsertPointsBuilder::new(&name, vec![at(1, 3), at(3, 3)]).update_mode(UpdateMode::UpdateOnly).wait(true);
        client.upsert_points(update).await.unwrap();
        assert_eq!(integer(&client, &name, 1, "revision").await, Some(3));
        assert_eq!(integer(&client, &name, 3, "revision").await, None);
    })
    .await;
}

#[tokio::test]
async fn dense_search_ranks_by_cosine_within_a_tenant() {
    on_every_server(|client, name| async move {
        create(&client, &name).await;
        upsert(
            &client,
            &name,
            vec![
                point(1, [1.0, 0.0, 0.0], &[], json!({"tenant": "a"})),
                point(2, [3.0, 4.0, 0.0], &[], json!({"tenant": "a"})),
                point(3, [0.0, 2.0, 0.0], &[], json!({"tenant": "a"})),
                point(4, [1.0, 0.0, 0.0], &[], json!({"tenant": "b"})),
                PointStruct::new(5, NamedVectors::default(), payload(json!({"tenant": "a"}))),
            ],
        )
        .await;
        let tenant = |tenant: &str| Filter::must([Condition::matches("tenant", tenant.to_owned())]);
        let query = || QueryPointsBuilder::new(&name).query(vec![2.0_f32, 0.0, 0.0]).using("dense");
        let found = ranked(&client, query().filter(tenant("a")).limit(10)).await;
        assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3], "without a vector it is not found");
        assert!(close(found[0].1, 1.0) && close(found[1].1, 0.6) && close(found[2].1, 0.0), "{found:?}");
        let found = ranked(&client, query().filter(tenant("b")).limit(10)).await;
        assert_eq!(found.len(), 1);
        let found = ranked(&client, query().filter(tenant("a")).limit(1).offset(1)).await;
        assert_eq!(found[0].0, 2);
        let found = ranked(&client, query().filter(tenant("a")).limit(10).score_threshold(0.5)).await;
        assert_eq!(found.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn sparse_search_multiplies_with_the_inverse_document_frequency() {
    on_every_server(|client, name| async move {
        create(&client, &name).await;
        // Term 1 in all of 4 points, term 2 in one; the fifth point has no sparse vector and does not count.
        upsert(
            &client,
            &name,
            vec![
                point(1, [1.0, 0.0, 0.0], &[(1, 1.0)], json!({})),
                point(2, [1.0, 0.0, 0.0], &[(1, 2.0)], json!({})),
                point(3, [1.0, 0.0, 0.0], &[(1, 1.5), (2, 0.5)], json!({})),
                point(4, [1.0, 0.0, 0.0], &[(1, 0.5)], json!({})),
                point(5, [1.0, 0.0, 0.0], &[], json!({})),
            ],
        )
        .await;
        let idf = |df: f32| ((4.0 - df + 0.5) / (df + 0.5) + 1.0).ln();
        let query = QueryPointsBuilder::new(&name).query(vec![(1_u32, 1.0_f32), (2, 1.0)]).using("text").limit(10);
        let found = ranked(&client, query).await;
        assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 2, 1, 4]);
        assert!(close(found[0].1, 1.5 * idf(4.0) + 0.5 * idf(1.0)), "{found:?}");
        assert!(close(found[1].1, 2.0 * idf(4.0)), "{found:?}");
    })
    .await;
}

#[tokio::test]
async fn hybrid_search_fuses_the_legs_by_reciprocal_rank() {
    on_every_server(|client, name| async move {
        create(&client, &name).await;
        upsert(
            &client,
            &name,
            vec![
                point(1, [1.0, 0.0, 0.0], &[(1, 0.1)], json!({"tenant": "a"})),
                point(2, [0.9, 0.1, 0.0], &[(1, 3.0)], json!({"tenant": "a"})),
                point(3, [0.5, 0.5, 0.0], &[(1, 2.0)], json!({"tenant": "a"})),
                point(4, [1.0, 0.0, 0.0], &[(1, 9.0)], json!({"tenant": "b"})),
            ],
        )
        .await;
        // Dense: 1, 2, 3. Sparse: 2, 3, 1.
        let tenant = Filter::must([Condition::matches("tenant", "a".to_owned())]);
        let leg = |query: Query, using: &str| {
            PrefetchQueryBuilder::default().query(query).using(using).filter(tenant.clone()).limit(100_u64)
        };
        let legs = || {
            QueryPointsBuilder::new(&name)
                .add_prefetch(leg(vec![1.0_f32, 0.0, 0.0].into(), "dense"))
                .add_prefetch(leg(vec![(1_u32, 1.0_f32)].into(), "text"))
        };
        for k in [2_u32, 60] {
            let at = |rank: u16| 1.0 / (f32::from(rank) + f32::from(u16::try_from(k).unwrap()));
            let fused = legs().query(Query::new_rrf(RrfBuilder::default().k(k))).limit(10);
            let found = ranked(&client, fused).await;
            assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 1, 3], "k = {k}");
            assert!(close(found[0].1, at(1) + at(0)) && close(found[1].1, at(0) + at(2)), "k = {k}: {found:?}");
        }
        let found = ranked(&client, legs().query(Fusion::Rrf).limit(2)).await;
        assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 1]);
        let found = ranked(&client, legs().query(Fusion::Rrf).limit(2).offset(1)).await;
        assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3]);
        // A filter of the whole holds in the legs, too: what it hides takes no rank.
        let without = Filter::must_not([Condition::has_id([2_u64])]);
        let found = ranked(&client, legs().query(Query::new_rrf(RrfBuilder::default().k(2))).filter(without)).await;
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(close(found[0].1, 1.0 / 2.0 + 1.0 / 3.0) && close(found[1].1, 1.0 / 2.0 + 1.0 / 3.0), "{found:?}");
    })
    .await;
}

#[tokio::test]
async fn what_is_replaced_or_deleted_is_not_found_any_more() {
    on_every_server(|client, name| async move {
        create(&client, &name).await;
        upsert(
            &client,
            &name,
            vec![point(1, [1.0, 0.0, 0.0], &[(1, 1.0)], json!({})), point(2, [0.0, 1.0, 0.0], &[(1, 1.0)], json!({}))],
        )
        .await;
        upsert(&client, &name, vec![point(1, [0.0, 0.0, 1.0], &[(2, 1.0)], json!({}))]).await;
        let sparse = |term: u32| QueryPointsBuilder::new(&name).query(vec![(term, 1.0_f32)]).using("text").limit(10);
        assert_eq!(ranked(&client, sparse(1)).await.len(), 1, "the replaced point has lost the term");
        assert_eq!(ranked(&client, sparse(2)).await.len(), 1);
        client
            .delete_points(DeletePointsBuilder::new(&name).points(PointsIdsList { ids: vec![1.into()] }).wait(true))
            .await
            .unwrap();
        assert_eq!(ranked(&client, sparse(2)).await.len(), 0);
        let dense = QueryPointsBuilder::new(&name).query(vec![0.0_f32, 0.0, 1.0]).using("dense").limit(10);
        assert_eq!(ranked(&client, dense).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_wrong_vector_is_refused_and_nothing_of_the_request_is_written() {
    on_every_server(|client, name| async move {
        create(&client, &name).await;
        let good = point(1, [1.0, 0.0, 0.0], &[], json!({}));
        let wrong = |name: &str, vector: Vec<f32>| {
            PointStruct::new(2, NamedVectors::default().add_vector(name, Vector::new_dense(vector)), Payload::new())
        };
        for bad in [wrong("dense", vec![1.0, 0.0]), wrong("other", vec![1.0, 0.0, 0.0])] {
            let request = UpsertPointsBuilder::new(&name, vec![good.clone(), bad]).wait(true);
            let error = client.upsert_points(request).await.unwrap_err();
            assert_eq!(code(&error), INVALID_ARGUMENT, "{error}");
        }
        assert_eq!(count(&client, &name, Filter::default()).await, 0);
        let query = QueryPointsBuilder::new(&name).query(vec![1.0_f32]).using("dense");
        assert_eq!(code(&client.query(query).await.unwrap_err()), INVALID_ARGUMENT);
    })
    .await;
}

#[tokio::test]
async fn the_server_answers_health_checks() {
    on_every_server(|client, _| async move {
        assert!(client.health_check().await.unwrap().title.contains("qdrant"));
    })
    .await;
}
